"""A small cache with statistics, and settings of a small run, as the tests of train have them."""

from tests.train.conftest import fitted_cache, make_config

__all__ = ["fitted_cache", "make_config"]
