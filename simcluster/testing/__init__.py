"""For tests, ours and a stranger's: fixed specifications and contract tests of plug-ins."""
