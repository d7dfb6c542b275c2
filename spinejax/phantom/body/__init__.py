"""HU and labels at points of the body: pure functions of points and of a person."""
