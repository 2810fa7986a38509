"""One user's search tree: read off a real search, pruned, and drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from gr.decoding import SearchTree
from gr.evaluation import EvaluationError
from gr.reports import TreeCandidate, search_tree_plot, tree_of_user
from gr.reports.plots import VERMILLION, to_data_uri
from gr.reports.search_trees import TreeOfUser, lay_out

# The root, three prefixes of one code, of which 2 has two children and 4 one; 3 has none.
PARENTS = [0, 0, 0, 0, 1, 1, 3]
TOKENS = [0, 2, 3, 4, 5, 6, 5]
VISITS = [6, 2, 0, 1, 0, 0, 0]
TARGET = (4, 5, 9)
CANDIDATES = [
    TreeCandidate((2, 6, 8), "a pen"),
    TreeCandidate((2, 5, 8), "x" * 50),
    TreeCandidate(TARGET, "costs $5"),
]


def tree(**fields):
    depths = np.array([0, 1, 1, 1, 2, 2, 2])
    count = len(depths)
    return TreeOfUser(
        **{
            "parents": np.array(PARENTS),
            "tokens": np.array(TOKENS),
            "depths": depths,
            "log_probs": -np.arange(count, dtype=np.float32),
            "values": np.where(depths < 2, np.arange(count) / 10, 0).astype(np.float32),
            "entropies": np.zeros(count, np.float32),
            "visits": np.array(VISITS),
        }
        | fields
    )


def test_a_user_of_a_batch_has_his_own_prefixes():
    full = {name: np.stack([value, value]) for name, value in vars(tree()).items()}
    full["exist"] = np.array([[True] * 7, [True] * 4 + [False] * 3])
    batch = SearchTree(**jax.tree.map(jnp.asarray, full))
    whole, part = tree_of_user(batch, 0), tree_of_user(batch, 1)
    assert whole.prefixes() == [(), (2,), (3,), (4,), (2, 5), (2, 6), (4, 5)]
    assert part.prefixes() == [(), (2,), (3,), (4,)]
    np.testing.assert_array_equal(whole.visits, VISITS)
    np.testing.assert_array_equal(part.values, whole.values[:4])


def shown(count, **options):
    layout = lay_out(
        tree(),
        options.pop("candidates", CANDIDATES),
        max_prefixes=count,
        max_candidates=options.pop("max_candidates", 9),
        **options,
    )
    prefixes = tree().prefixes()
    return {prefixes[n] for n in layout.rows}, layout


def test_the_most_visited_prefixes_stay_and_among_equals_those_of_the_best_candidates():
    assert shown(3)[0] == {(), (2,), (4,)}
    assert shown(4)[0] == {(), (2,), (4,), (2, 6)}
    assert shown(4, candidates=[])[0] == {(), (2,), (4,), (3,)}  # By log-probability.
    assert shown(7)[0] == set(tree().prefixes())


def test_the_path_of_the_target_always_stays():
    assert shown(1, target=TARGET)[0] == {(), (4,), (4, 5)}
    prefixes, layout = shown(7, target=TARGET, max_candidates=1)
    assert [placed.rank for placed in layout.candidates] == [1, 3]


def test_rows_are_in_order_of_probability_and_parents_amid_their_children():
    prefixes, layout = shown(7)
    row = {tree().prefixes()[n]: at for n, at in layout.rows.items()}
    assert row[2, 5] < row[2, 6] < row[3,] < row[4,] == row[4, 5]
    assert row[2,] == (row[2, 5] + row[2, 6]) / 2
    leaves = [row[2, 5], row[2, 6], row[3,], row[4, 5]]
    assert leaves == [0, 1, 2, 3] and layout.num_rows == 4


def test_a_candidate_hangs_on_the_longest_of_its_prefixes_that_was_evaluated():
    early = TreeCandidate((3, 6, 9), "the only item behind 3")
    _, layout = shown(7, candidates=[CANDIDATES[0], early])
    prefixes = tree().prefixes()
    assert [prefixes[placed.prefix] for placed in layout.candidates] == [(2, 6), (3,)]
    texts = drawn([early], level_offsets=[2, 5, 8])[2]
    assert "1 1" in texts  # The codes that were not evaluated, counted from their levels' first.


def drawn(candidates=CANDIDATES, **options):
    figure = search_tree_plot(tree(), candidates, **options)
    axes = figure.axes[0]
    texts = {text.get_text(): text for text in axes.texts}
    return figure, axes, texts


def test_the_figure_shows_beam_target_and_candidates():
    figure, axes, texts = drawn(beam={(2,), (2, 6)}, target=TARGET, level_offsets=[2, 5, 8])
    (circles,) = axes.collections
    order = [circles.get_offsets()[:, 0].tolist(), circles.get_linewidths(), circles.get_sizes()]
    depths, widths, areas = order
    assert sorted(depths) == [0, 1, 1, 1, 2, 2, 2]
    assert (np.asarray(widths) > 1).sum() == 2
    assert areas.argmax() == depths.index(0)
    on_path = [tuple(c) == to_rgba(VERMILLION) for c in circles.get_edgecolors()]
    assert sum(on_path) == 3
    title = texts[r"3. costs \$5"]
    assert title.get_color() == VERMILLION and title.get_weight() == "bold"
    assert texts["1. a pen"].get_weight() == "normal"
    assert "2. " + "x" * 39 + "…" in texts
    codes = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
    # Seven prefixes but the root, and three candidates, each code counted from its level's first.
    assert sorted(codes) == sorted(["0", "1", "2", "0", "1", "0"] + ["0", "0", "1"])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "evaluated prefix",
        "also in plain beam search",
        "path of the target",
    ]
    assert to_data_uri(figure, kind="png").startswith("data:image/png")


def test_what_is_left_out_and_a_target_that_was_not_found_are_told():
    figure, _, texts = drawn(max_prefixes=4, target=(4, 6, 9), labels={(2,): "stationery"})
    note = figure.get_supxlabel()
    assert "3 of 7 prefixes" in note and "2 of 3 candidates" in note
    assert "its first 1 of 3 codes" in note
    assert "stationery" in texts
    assert "left out" not in drawn()[0].get_supxlabel()


def test_without_a_value_head_and_without_anything_to_show():
    search_tree_plot(tree(values=np.zeros(7, np.float32)), [])
    root = TreeOfUser(**{name: value[:1] for name, value in vars(tree()).items()})
    with pytest.raises(EvaluationError, match="empty prefix alone"):
        search_tree_plot(root, [])
