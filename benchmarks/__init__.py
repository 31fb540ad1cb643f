"""Side-by-side measurements; figures are kept in RESULTS.md."""
