"""Full-size dumps of Amazon Reviews 2023 and Yelp, made into a small folder of our records. Imports data, core."""
