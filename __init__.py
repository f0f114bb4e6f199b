"""Cache every teacher once. Distill as many students as you like.

The package is a set of rooms: ``phistill.cache`` (bytes on disk), ``phistill.stats`` (moments and
normalizers), ``phistill.pipeline`` (images and teachers), ``phistill.train`` (students),
``phistill.report`` (what a person looks at) and ``phistill.demo``. Nothing is imported here, so
that ``import phistill`` costs nothing; import the room you need.
"""

__version__ = "0.1.0"
