"""The fastest INT8 assignment that keeps an accuracy budget: candidates, budget, search."""
