"""What trials leave behind, and what it says: the records of a sweep, its front, its winner."""
