"""What is read off a compiled program's text: a program written out by hand, and programs that XLA compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gr
from gr.runs.hlo import Cost, read_costs

pytestmark = pytest.mark.usefixtures("compile_anew")

# A loop of 4 - 1 = 3 rounds around a fused gather, behind which two all-reduces and a sort stand.
PROGRAM = """HloModule jit_f, is_scheduled=true

FileNames
1 "ROOT/gr/trie/packed.py"
2 "/elsewhere/library.py"

FunctionNames
1 "take"

FileLocations
1 {file_name_id=1 function_name_id=1 line=48 end_line=48 column=6 end_column=33}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=6 end_column=33}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=2 parent_frame_id=3}

%fused_computation (param_0: f32[100], param_1: s32[6]) -> f32[6] {
  %param_0 = f32[100]{0:T(128)} parameter(0)
  %param_1 = s32[6]{0:T(128)} parameter(1)
  %gather.1 = f32[6]{0:T(128)S(1)} gather(%param_0, %param_1), offset_dims={}, slice_sizes={1}
  ROOT %exp = f32[6]{0:T(128)} exponential(%gather.1)
}

%condition (state.1: (s32[], f32[100], s32[6], s32[])) -> pred[] {
  %state.1 = (s32[], f32[100]{0}, s32[6]{0}, s32[]) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} get-tuple-element(%state.1), index=3
  ROOT %less = pred[]{:T(512)} compare(%count.1, %limit), direction=LT
}

%body (state: (s32[], f32[100], s32[6], s32[])) -> (s32[], f32[100], s32[6], s32[]) {
  %state = (s32[], f32[100]{0}, s32[6]{0}, /*index=3*/s32[]) parameter(0)
  %table = f32[100]{0} get-tuple-element(%state), index=1
  %places = s32[6]{0} get-tuple-element(%state), index=2
  %gather_fusion = f32[6]{0} fusion(%table, %places), kind=kCustom, calls=%fused_computation, FRAME(2)
  %add.1 = f32[6]{0} add(%gather_fusion, %gather_fusion), FRAME(1), ESTIMATE(100)
  ROOT %copied = (s32[], f32[100]{0}, s32[6]{0}, s32[]) copy(%state), ESTIMATE(7)
}

ENTRY %main (x: f32[2,70], i: s32[6]) -> f32[2,70] {
  %x = f32[2,70]{1,0:T(2,128)} parameter(0)
  %i = s32[6]{0} parameter(1)
  %one = s32[]{:T(128)} constant(1)
  %one_again = s32[]{:T(128)} copy(%one)
  %four = s32[]{:T(128)} constant(4)
  %baked = f32[1000]{0:T(1024)} constant({...})
  %small = f32[2]{0} constant({1, 2})
  %slice.1 = f32[100]{0} slice(%baked), slice={[0:100]}, ESTIMATE(5)
  %begin = (s32[], f32[100]{0}, s32[6]{0}, s32[]) tuple(%one_again, %slice.1, %i, %four)
  %while.1 = (s32[], f32[100]{0}, s32[6]{0}, s32[]) while(%begin), condition=%condition, body=%body
  %sum = f32[2,70]{1,0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%condition
  %start = (bf16[3]{0}, bf16[3]{0}) all-reduce-start(%small), channel_id=2, replica_groups={}
  %done = bf16[3]{0} all-reduce-done(%start)
  %best = (f32[2,5]{1,0}, s32[2,5]{1,0}) custom-call(%sum), custom_call_target="TopK", FRAME(3), ESTIMATE(9)
  ROOT %y = f32[2,70]{1,0} copy(%sum), ESTIMATE(20)
}
"""
PROGRAM = PROGRAM.replace("ROOT/", gr.__file__.removesuffix("gr/__init__.py"))
PROGRAM = re.sub(r"FRAME\((\d)\)", r'metadata={op_name="jit(f)/x" stack_frame_id=\1}', PROGRAM)
ESTIMATE = r'backend_config={"window_config":{"estimated_cycles":"\1","iteration_bounds":["1"]}}'
PROGRAM = re.sub(r"ESTIMATE\((\d+)\)", ESTIMATE, PROGRAM)


def test_a_program_written_by_hand():
    costs = read_costs(PROGRAM)
    kinds = costs.of_kinds()
    assert kinds.keys() == {"gathers", "elementwise", "copies", "collectives", "sorts"}
    assert kinds["gathers"] == Cost("gathers", "", 3, 0, 3, 3 * 6, 3 * 24)
    # The loop's condition runs with it.
    assert kinds["elementwise"].cycles == 3 * 100 + 5
    assert kinds["copies"].cycles == 3 * 7 + 20
    assert (kinds["copies"].count, kinds["copies"].unestimated) == (3 + 2, 1)
    # Two results of a start are one exchange; the tuple holds it twice, as it is written.
    assert kinds["collectives"].count == 2
    # What is sorted, not what is kept of it; an estimate of a sort is none.
    assert kinds["sorts"] == Cost("sorts", "", 1, 0, 1, 140, 560)
    assert costs.cycles == 3 * (100 + 7) + 5 + 20
    assert costs.constant_bytes == 4000
    assert costs.open_loops == 0


def test_lines_are_the_innermost_of_ours():
    sources = {cost.kind: cost.source for cost in read_costs(PROGRAM).of_lines if cost.source}
    assert sources["gathers"] == "gr/trie/packed.py:48"  # Called from there, in a library.
    assert sources["sorts"] == "library.py:7"  # Nowhere in a line of ours.


def test_rounds_of_a_loop_that_depends_on_data():
    text = PROGRAM.replace("constant(1)", "parameter(2)")
    once, often = read_costs(text), read_costs(text, rounds=10)
    assert once.open_loops == often.open_loops == 1
    assert once.of("gathers").count == 1 and often.of("gathers").count == 10


def test_a_program_without_estimates_has_no_cycles():
    text = re.sub(r', backend_config=\{"window.*', "", PROGRAM)
    assert read_costs(text).cycles is None
    assert read_costs(text).of("gathers").count == 3


def test_estimates_of_a_gpu():
    def cost(cycles, name):
        return f'{{"end_to_end_cycles":{cycles}.5,"exec_time_us":1,"name":"{name}"}}'

    plain, tiles = cost(9, ""), cost(4, "indexing-cost-model")
    for costs, cycles in ((plain, 9), (f"{plain},{tiles},{cost(0, 'sol')}", 4), ("", None)):
        text = re.sub(
            r'"window_config":\{"estimated_cycles":"20".*\}\}',
            f'"reification_cost":[{costs}]}}',
            PROGRAM,
        )
        assert (read_costs(text).cycles - (read_costs(PROGRAM).cycles - 20) or None) == cycles


@pytest.mark.parametrize("told", [True, False], ids=["told", "counted"])
def test_programs_of_this_machine(told):
    table = jnp.asarray(np.random.default_rng(0).random(5000, np.float32))  # Baked in.

    def f(places, x):
        def step(i, x):
            return jnp.sort(x * 2) + table[places].sum() + i

        return jax.lax.fori_loop(2, 9, step, x)

    compiled = jax.jit(f).lower(jnp.zeros(6, jnp.int32), jnp.ones(300)).compile()
    text = compiled.as_text()
    if not told:
        text = re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", text)
    costs = read_costs(text)
    assert costs.open_loops == 0
    assert costs.of("sorts").count == 7 and costs.of("sorts").elements == 7 * 300
    assert costs.constant_bytes == 4 * 5000
    assert {cost.source for cost in costs.of_lines if cost.kind == "sorts"} == {
        f"test_hlo.py:{f.__code__.co_firstlineno + 2}"
    }
