"""2^x with part of the work taken from the special-function unit, as FlashAttention-4 does.

At head dimension 64 that unit needs as long for a tile of scores as the matrix unit, while those that add and
multiply have time to spare.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl

# 2^x for |x| <= 1/2 as a polynomial, constant first; the relative error is at most 2.6e-6.
_POLYNOMIAL = (0.99999926, 0.69312181, 0.24024745, 0.05591786, 0.0095701)


def _assembly(count: int) -> str:
    """PTX of `count` times 2^x in float32, the last of them without the special-function unit.

    With n = round(x), 2^x is the polynomial at x - n, with n added to its exponent: adding 1.5 * 2^23 rounds,
    and leaves n in the low bits. x is clamped to where the result is a normal number.
    """
    fast = "".join(f"ex2.approx.ftz.f32 ${i}, ${i + count};\n" for i in range(count - 1))
    first, *rest = reversed(_POLYNOMIAL)
    horner = "".join(f"fma.rn.f32 p, p, f, {_ptx_float(c)};\n" for c in rest)
    return f"""{{
.reg .f32 x, t, f, p;
.reg .b32 n, y;
{fast}max.f32 x, ${2 * count - 1}, {_ptx_float(-126)};
min.f32 x, x, {_ptx_float(126)};
add.rn.f32 t, x, {_ptx_float(1.5 * 2**23)};
sub.rn.f32 f, t, {_ptx_float(1.5 * 2**23)};
sub.rn.f32 f, x, f;
mov.f32 p, {_ptx_float(first)};
{horner}mov.b32 n, t;
shl.b32 n, n, 23;
mov.b32 y, p;
add.s32 y, y, n;
mov.b32 ${count - 1}, y;
}}"""


def _ptx_float(value: float) -> str:
    return f"0f{struct.pack('>f', value).hex().upper()}"


_EXP2_OF_2, _EXP2_OF_4, _EXP2_OF_8 = (tl.constexpr(_assembly(count)) for count in (2, 4, 8))


@triton.jit
def mixed_exp2(x, POLYNOMIAL: tl.constexpr):
    """2^x; if POLYNOMIAL, which the interpreter cannot run, one of so many as in `_assembly`."""
    if POLYNOMIAL == 2:
        y = tl.inline_asm_elementwise(_EXP2_OF_2, "=f,=f,f,f", [x], tl.float32, True, 2)
    elif POLYNOMIAL == 4:
        y = tl.inline_asm_elementwise(_EXP2_OF_4, "=f,=f,=f,=f,f,f,f,f", [x], tl.float32, True, 4)
    elif POLYNOMIAL == 8:
        y = tl.inline_asm_elementwise(
            _EXP2_OF_8, "=f,=f,=f,=f,=f,=f,=f,=f,f,f,f,f,f,f,f,f", [x], tl.float32, True, 8
        )
    else:
        y = tl.exp2(x)
    return y
