import gzip
import json

import pytest

from gr.data import DataError, read_amazon_ratings, read_amazon_reviews

ANN, BOB = "A1RSDE90N6RSZF", "A2NODRKZF88ZB4"
PEN, TAPE, LAMP = "B00000JBLH", "B0000AQOD2", "0123456789"

OLD = [
    {
        "reviewerID": ANN,
        "asin": TAPE,
        "overall": 5.0,
        "unixReviewTime": 1094169600,
        "reviewText": "x",
    },
    {
        "reviewerID": BOB,
        "asin": PEN,
        "overall": 2.0,
        "unixReviewTime": 1000000000,
        "helpful": [0, 1],
    },
    {"reviewerID": ANN, "asin": PEN, "overall": 4.0, "unixReviewTime": 1078790400},
]
NEW = [
    {
        "user_id": row["reviewerID"],
        "asin": "B0VARIANT0",
        "parent_asin": row["asin"],
        "rating": row["overall"],
        "timestamp": row["unixReviewTime"] * 1000,
        "images": [],
    }
    for row in OLD
]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def expect_the_three(sequences):
    assert sequences.user_ids.tolist() == [ANN, BOB]
    assert sequences.item_ids.tolist() == [TAPE, PEN]
    assert sequences.items.tolist() == [1, 0, 1]
    assert sequences.times.tolist() == [1078790400, 1094169600, 1000000000]


@pytest.mark.parametrize("records", [OLD, NEW], ids=["2014 and 2018", "2023"])
@pytest.mark.parametrize("pack", [False, True])
def test_reviews(tmp_path, records, pack):
    path = tmp_path / ("reviews.json.gz" if pack else "reviews.json")
    content = lines(records).encode()
    path.write_bytes(gzip.compress(content) if pack else content)
    sequences = read_amazon_reviews(path)
    expect_the_three(sequences)
    path.write_bytes(gzip.compress(2 * content) if pack else 2 * content)
    assert len(read_amazon_reviews(path).items) == 6
    expect_the_three(read_amazon_reviews(path, drop_duplicates=True))
    path.write_bytes(content)  # Whatever the name says.
    assert len(read_amazon_reviews(path, min_rating=4).items) == 2
    with pytest.raises(DataError, match="no interaction is left with min_rating=None, k_core=2"):
        read_amazon_reviews(path, k_core=2)


BAD_LINES = {
    '{"reviewerID": "A"': r"not JSON",
    "[1, 2]": "not a JSON object",
    json.dumps({**OLD[0], "unixReviewTime": "noon"}): "unixReviewTime is not a number: 'noon'",
    json.dumps({**OLD[0], "overall": True}): "overall is not a number: True",
    json.dumps({**OLD[0], "asin": ""}): "asin is no id: ''",
    json.dumps({**OLD[0], "asin": ["x"]}): r"asin is no id: \['x'\]",
    json.dumps({"reviewerID": ANN}): "no field 'asin'",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_lines(tmp_path, bad):
    path = tmp_path / "reviews.json"
    path.write_text(lines(OLD) + "\n" + bad + "\n")
    with pytest.raises(DataError, match=r"reviews\.json:5: " + BAD_LINES[bad]):
        read_amazon_reviews(path)
    sequences = read_amazon_reviews(path, skip_bad_rows=True)
    assert sequences.skipped_rows == 1
    expect_the_three(sequences)


def test_numbers_written_as_strings_are_numbers(tmp_path):
    path = tmp_path / "reviews.json"
    path.write_text(lines([*OLD[:2], {**OLD[2], "overall": "4.0"}]))
    expect_the_three(read_amazon_reviews(path))


def test_other_json_is_no_review(tmp_path):
    path = tmp_path / "reviews.json"
    path.write_text('{"who": 1, "what": 2}\n')
    with pytest.raises(DataError, match="the first line has who, what"):
        read_amazon_reviews(path)
    path.write_text("not json\n")
    with pytest.raises(DataError, match="no line is a JSON object"):
        read_amazon_reviews(path)


METADATA_2014 = (
    f"{{'asin': '{LAMP}', 'title': 'Nobody took it'}}\n"
    f"{{'asin': '{PEN}', 'title': \"BIC's &quot;Pen&quot;\", 'categories': [['Office', 'Pens']], 'price': 1.5}}\n"
)
METADATA_2023 = json.dumps(
    {"parent_asin": PEN, "title": 'BIC\'s "Pen"', "store": "BIC", "categories": ["Office", "Pens"]}
)


def test_metadata_of_2014_is_python_and_of_2023_json(tmp_path):
    path, metadata = tmp_path / "reviews.json", tmp_path / "meta.json.gz"
    path.write_text(lines(OLD))
    for content, brand in ((METADATA_2014, ""), (METADATA_2023, "BIC")):
        metadata.write_bytes(gzip.compress(content.encode()))
        fields = read_amazon_reviews(path, metadata).item_fields
        assert {name: field.tolist() for name, field in fields.items()} == {
            "title": ["", 'BIC\'s "Pen"'],  # The tape is unknown to the metadata.
            "brand": ["", brand],
            "categories": ["", "Office, Pens"],
            "description": ["", ""],
        }


def test_reviews_as_python_dictionaries(tmp_path):
    path = tmp_path / "reviews.json"
    path.write_text("".join(f"{record!r}\n" for record in OLD))
    expect_the_three(read_amazon_reviews(path))


PAGES = {
    "var aPageStart = (new Date()).getTime();\nvar ue_t0 = ue_t0 || +new Date();": PEN,
    "<script>\nvar x = 1;\n</script>": PEN,
    ".a-box {margin: 0}": PEN,
    '<span class="a-size-medium">Pen &amp;amp; Ink</span>': "Pen & Ink",
    "Pen <3 Ink<br>red": "Pen <3 Ink red",
}


@pytest.mark.parametrize("title", PAGES)
def test_titles_are_no_pages(tmp_path, title):
    path, metadata = tmp_path / "reviews.json", tmp_path / "meta.json"
    path.write_text(lines(OLD))
    metadata.write_text(json.dumps({"asin": PEN, "title": title}) + "\n")
    assert read_amazon_reviews(path, metadata).titles().tolist() == [TAPE, PAGES[title]]


def test_metadata_nested_too_deeply_is_a_bad_row(tmp_path):
    path, metadata = tmp_path / "r.json", tmp_path / "meta.json"
    path.write_text(lines(OLD))
    metadata.write_text(f'{{"asin": "{PEN}", "description": ' + "[" * 50 + "]" * 50 + "}\n")
    with pytest.raises(DataError, match=r"meta\.json:1: lists are nested deeper"):
        read_amazon_reviews(path, metadata)
    assert read_amazon_reviews(path, metadata, skip_bad_rows=True).skipped_rows == 1


def test_metadata_is_never_executed(tmp_path):
    path, metadata, victim = tmp_path / "r.json", tmp_path / "meta.json", tmp_path / "victim"
    path.write_text(lines(OLD))
    metadata.write_text(f"{{'asin': open({str(victim)!r}, 'w').name}}\n")
    with pytest.raises(DataError, match=r"meta\.json:1: no JSON object or Python dictionary"):
        read_amazon_reviews(path, metadata)
    assert read_amazon_reviews(path, metadata, skip_bad_rows=True).skipped_rows == 1
    assert not victim.exists()


RATINGS = {
    2014: f"{ANN},{TAPE},5.0,1094169600\n{BOB},{PEN},2.0,1000000000\n{ANN},{PEN},4.0,1078790400\n",
    2018: f"{TAPE},{ANN},5.0,1094169600\n{PEN},{BOB},2.0,1000000000\n{PEN},{ANN},4.0,1078790400\n",
    2023: "user_id,parent_asin,rating,timestamp\n"
    f"{ANN},{TAPE},5.0,1094169600000\n{BOB},{PEN},2.0,1000000000000\n{ANN},{PEN},4.0,1078790400000\n",
}


@pytest.mark.parametrize("edition", RATINGS)
def test_ratings(tmp_path, edition):
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS[edition])
    expect_the_three(read_amazon_ratings(path, edition=edition))


@pytest.mark.parametrize(("edition", "wrong"), [(2014, 2018), (2018, 2014)])
def test_the_wrong_edition_is_noticed(tmp_path, edition, wrong):
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS[edition])
    with pytest.raises(DataError, match=f"this is not edition {wrong}"):
        read_amazon_ratings(path, edition=wrong)


def test_other_faults_of_ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS[2014] + f"{ANN},{PEN},4.0\n")
    with pytest.raises(DataError, match="no edition 2015"):
        read_amazon_ratings(path, edition=2015)
    with pytest.raises(DataError, match="no column 'user_id'"):
        read_amazon_ratings(path, edition=2023)
    with pytest.raises(DataError, match=r"ratings\.csv:4: 3 columns instead of 4"):
        read_amazon_ratings(path, edition=2014)
    assert read_amazon_ratings(path, edition=2014, skip_bad_rows=True).skipped_rows == 1
