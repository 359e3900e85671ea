import pytest

triton = pytest.importorskip("triton")

NVIDIA = """\
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_0:
        /*0020*/                   SHFL.BFLY PT, R3, R2, 0x1, 0x1f ;
        /*0030*/              @P0  BRA `(.L_x_0) ;
        /*0040*/             @!P1  BRA `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0060*/                   EXIT ;
"""
AMD = """\
\t.text
kernel:
\ts_load_dword s0, s[4:5], 0x0 ; 4-byte
.LBB0_1:
\tds_bpermute_b32 v1, v2, v3
\tv_add_f32_dpp v1, v1, v1 row_shr:1
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
\ts_code_end
"""


def test_loops_and_instructions_are_found_in_assembly(load_benchmark):
    benchmark = load_benchmark("machine_code")
    code, loops = benchmark.read(benchmark.nvidia_lines(NVIDIA), "BRA")
    assert [line.split()[0] for line in code] == ["MOV", "IADD3", "SHFL.BFLY", "BRA", "BRA", "BRA", "EXIT"]
    assert loops == [(1, 5)]  # the outer one; a branch ahead is none
    code, loops = benchmark.read(benchmark.amd_lines(AMD), "s_c?branch")
    assert len(code) == 5 and loops == [(1, 4)]
    assert sum(bool(benchmark.SHUFFLES.match(line)) for line in code) == 2
