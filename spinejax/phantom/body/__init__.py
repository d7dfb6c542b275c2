"""What lies at a point of the body: pure functions of points and of a person."""
