# The longest holds of each step in a server's log: see run.sh.
/ STEP / { step = $0; sub(/.* STEP /, "", step) }
/^LOCK HELD/ {
	where = $5 "\t" $7 " to " $9; gsub("src/", "", where); key = step "\t" where
	n[key]++
	if ($3 >= 100) {
		long[key]++
		# switches are counted between reports, so none is certain, one is not
		if ($11 == 0) sure[key]++
	}
	if ($3 > max[key]) max[key] = $3
	if ($11 == 0 && $3 > quiet[key]) quiet[key] = $3
}
END {
	for (key in max)
		if (max[key] >= least)
			printf "%7d us, not preempted %6d us, %4d (%d) of %5d of 100 us or more\t%s\n", max[key], quiet[key], long[key], sure[key], n[key], key
}
