"""Privacy accounting as plain maths, and the statements that an owner reads. Free of torch."""
