"""Reports: pictures of scans, tables of scores, one page for a run."""
