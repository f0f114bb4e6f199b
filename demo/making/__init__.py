"""The scripts that made the bundled images and teachers, and the tables of demo/README.md."""
