"""What a person looks at: ``report`` writes one HTML file; bars and numbers of the terminal.

Names are loaded on first use, because the terminal's bars must not load torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
