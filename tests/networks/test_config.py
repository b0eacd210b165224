"""Stage tables: what is valid, what is refused, and the way through dict and JSON."""

import dataclasses
import json

import pytest

from src import FULL, LITE, NetworkConfig, U2NetConfig, UserError, build_model


@pytest.mark.parametrize("config", [FULL, LITE, LITE.replace(out_ch=4, activation="softmax")])
def test_json_round_trip(config, tmp_path):
    config.to_json(tmp_path / "net.json")
    assert U2NetConfig.from_dict(json.loads((tmp_path / "net.json").read_text())) == config
    assert build_model(tmp_path / "net.json").config == config


def test_tables_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LITE.encoder[0].mid_ch = 3


def change(part, index, **fields):
    """LITE as a dict with one stage changed."""
    table = LITE.to_dict()
    table[part][index].update(fields)
    return table


def without(part, index):
    table = LITE.to_dict()
    del table[part][index]
    return table


BAD = {
    "encoder does not chain": (change("encoder", 2, in_ch=65), ("En3", "65", "64", "En2")),
    "decoder does not chain": (change("decoder", 1, in_ch=64), ("De4", "64", "128")),
    "height": (change("encoder", 3, height=1), ("En4", "height", "2")),
    "channels": (change("decoder", 4, mid_ch=0), ("De1", "mid_ch", "1")),
    "not a number": (change("encoder", 0, out_ch="64"), ("En1", "out_ch")),
    "too few decoder stages": (without("decoder", 0), ("6", "5", "4")),
    "unknown field": (change("encoder", 0, hieght=7), ("En1", "hieght")),
    "one stage": (LITE.to_dict() | {"encoder": LITE.to_dict()["encoder"][:1]}, ("2", "1")),
    "out_ch": (LITE.to_dict() | {"out_ch": 0}, ("out_ch", "0")),
    "text for a truth value": (change("encoder", 5, side="false"), ("En6", "side")),
    "truth value for a number": (LITE.to_dict() | {"out_ch": True}, ("out_ch",)),
    "activation": (LITE.to_dict() | {"activation": "tanh"}, ("tanh",)),
    "no list": (LITE.to_dict() | {"decoder": None}, ("decoder",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_table_names_stage_and_number(case):
    table, words = BAD[case]
    with pytest.raises(ValueError) as error:
        U2NetConfig.from_dict(table)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_side_output_is_refused():
    table = LITE.to_dict()
    for stage in (*table["encoder"], *table["decoder"]):
        stage["side"] = False
    with pytest.raises(ValueError, match=r"De1: expected at least 1"):
        U2NetConfig.from_dict(table)


def test_missing_field_is_named():
    table = LITE.to_dict()
    del table["encoder"][1]["mid_ch"]
    with pytest.raises(UserError, match=r"En2.*mid_ch"):
        U2NetConfig.from_dict(table)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", json.dumps({"name": "x"}), "[" * 100_000, '{"name": 1' + "0" * 5000 + "}"],
    ids=["torn", "a list", "no stages", "deep", "a long number"],
)
def test_bad_json_names_the_file(text, tmp_path):
    path = tmp_path / "net.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"net\.json"):
        build_model(path)


def test_unknown_name_lists_the_known_ones():
    """And what U-2-Net's own names are here."""
    with pytest.raises(UserError, match=r"u2net_full, u2net_lite.*\(u2netp is u2net_lite here\)"):
        build_model("u2netp")


def test_json_of_other_editors(tmp_path):
    """With a byte order mark, under a name in capitals."""
    LITE.to_json(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "B.JSON").write_text(text, encoding="utf-8-sig")
    assert build_model(tmp_path / "B.JSON").config == LITE


@pytest.mark.parametrize("table", [{"name": "unet", "width": 10**7}, {"name": "unet", "x": 1}, []])
def test_bad_options(table):
    """Refused before memory is asked for; of no table at all, too."""
    with pytest.raises(UserError):
        NetworkConfig.from_dict(table)
