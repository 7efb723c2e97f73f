"""What every benchmark needs: a server, rounds, figures, charts."""
