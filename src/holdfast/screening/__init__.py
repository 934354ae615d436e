"""How vulnerable new examples would be, and what vulnerable ones have in common."""
