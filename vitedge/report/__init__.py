"""The page that `vitedge report` writes, and what a build keeps of its images for it."""
