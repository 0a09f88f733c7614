"""Files that every part borrows: written in one go, locked folders, restarts."""
