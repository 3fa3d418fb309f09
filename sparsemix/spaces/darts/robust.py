"""The spaces S1 to S4, on which DARTS fails in known ways, as data: cell -> edge -> operations.

Source: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", section 3 and appendix G.
"""

from __future__ import annotations

from .space import Space, everywhere

__all__ = ["S1", "S2", "S3", "S4", "SPACES"]

_SKIP, _SEP, _DIL3, _DIL5 = "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"
_MAX, _AVG = "max_pool_3x3", "avg_pool_3x3"

S1: Space = {
    "normal": {
        "2<-0": (_SKIP, _DIL3),
        "2<-1": (_SKIP, _DIL5),
        "3<-0": (_SKIP, _DIL5),
        "3<-1": (_SKIP, _SEP),
        "3<-2": (_SKIP, _DIL3),
        "4<-0": (_MAX, _SKIP),
        "4<-1": (_SKIP, _SEP),
        "4<-2": (_SKIP, _SEP),
        "4<-3": (_SKIP, _DIL3),
        "5<-0": (_SKIP, _SEP),
        "5<-1": (_MAX, _SKIP),
        "5<-2": (_SKIP, _DIL3),
        "5<-3": (_DIL3, _DIL5),
        "5<-4": (_DIL3, _DIL5),
    },
    "reduce": {
        "2<-0": (_MAX, _AVG),
        "2<-1": (_MAX, _DIL3),
        "3<-0": (_MAX, _AVG),
        "3<-1": (_MAX, _AVG),
        "3<-2": (_SKIP, _DIL5),
        "4<-0": (_MAX, _AVG),
        "4<-1": (_MAX, _SEP),
        "4<-2": (_SKIP, _DIL3),
        "4<-3": (_SKIP, _DIL5),
        "5<-0": (_MAX, _AVG),
        "5<-1": (_MAX, _AVG),
        "5<-2": (_SKIP, _DIL5),
        "5<-3": (_SKIP, _DIL5),
        "5<-4": (_SKIP, _DIL5),
    },
}
S2: Space = everywhere(_SKIP, _SEP)
S3: Space = everywhere("none", _SKIP, _SEP)
S4: Space = everywhere("noise", _SEP)

SPACES: dict[str, Space] = {"s1": S1, "s2": S2, "s3": S3, "s4": S4}
