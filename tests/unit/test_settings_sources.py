"""Settings: where they come from, who wins, what is refused, and what is never printed."""

import hashlib
import json
from typing import Any

import pytest
from pydantic import SecretStr

from schemas.errors import SettingsError
from schemas.settings import DATA_SECTIONS, Settings, data_fingerprint, fingerprint
from schemas.settings_sources import known_names, load_settings

TOML = 'root = "/data"\n[kafka]\ntopic_prefix = "mill"\n[serving]\nport = 9000\n'


def refused(toml: str = "", environ: dict[str, str] | None = None, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(toml, environ or {}, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_any_source_every_setting_has_its_default() -> None:
    assert load_settings("", {}) == Settings()


def test_the_environment_beats_the_file_and_flags_beat_both() -> None:
    environ = {"HEADRACE_KAFKA__TOPIC_PREFIX": "env", "HEADRACE_SERVING__PORT": "9001", "HEADRACE_ROOT": "/env"}
    settings = load_settings(TOML, environ, {"serving.port": 9002})
    assert (settings.kafka.topic_prefix, settings.serving.port, settings.root) == ("env", 9002, "/env")
    assert load_settings(TOML, {}).root == "/data"


def test_flags_that_were_not_given_change_nothing() -> None:
    assert load_settings(TOML, {}, {"serving.port": None, "root": None}) == load_settings(TOML, {})


def test_other_peoples_environment_is_left_alone() -> None:
    environ = {"PATH": "/bin", "HEADRACES": "1", "HEADRACE_TEST_BOOTSTRAP": "x:1", "HEADRACE_CRASH_AT": "commit"}
    assert load_settings("", environ) == Settings()


def test_a_list_in_the_environment_or_a_flag_is_separated_by_commas() -> None:
    settings = load_settings("", {"HEADRACE_QUALITY__LANGUAGES": "zh,en", "HEADRACE_SERVING__API_KEYS": "a,b"}, {"quality.rule_sets": "c4,fineweb"})
    assert settings.quality.languages == ("zh", "en")
    assert settings.quality.rule_sets == ("c4", "fineweb")
    assert settings.serving.api_keys == (SecretStr("a"), SecretStr("b"))


@pytest.mark.parametrize("name", ["", " ", ".", "packing.", ".vocab_size"])
def test_a_value_without_a_name_is_told_that_the_name_is_missing(name: str) -> None:
    message = refused(overrides={name: "3"})
    assert "the name of the setting is missing" in message and "did you mean" not in message


@pytest.mark.parametrize(
    ("toml", "near"),
    [
        ('[kafka]\nbootstrap_server = "x"\n', "kafka.bootstrap_servers"),
        ("[serving]\nprot = 1\n", "serving.port"),
        ("[kafak]\n", "kafka"),
        ('rot = "x"\n', "root"),
    ],
)
def test_an_unknown_key_in_the_file_names_the_nearest_known_one(toml: str, near: str) -> None:
    message = refused(toml)
    assert message.endswith(f"did you mean {near!r}?")
    assert message.startswith("headrace.toml:")


def test_unknown_environment_variables_and_flags_name_the_nearest_known_one() -> None:
    assert "HEADRACE_DEDUP__MAX_HAMING" in refused(environ={"HEADRACE_DEDUP__MAX_HAMING": "2"})
    assert "'dedup.max_hamming'" in refused(environ={"HEADRACE_DEDUP__MAX_HAMING": "2"})
    assert "'loop.min_new_tokens'" in refused(overrides={"loop.min_new_token": 1})


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[kafka", "headrace.toml is not valid TOML"),
        ("[serving]\nport = 70000\n", "serving.port: Input should be less than or equal to 65535"),
        ("[dedup]\nmax_hamming = 'three'\n", "dedup.max_hamming: Input should be a valid integer"),
        ("kafka = 3\n", "kafka: Input should be"),
        ('root = "ftp://host"\n', "root is 'ftp://host'; it must be a folder, or s3://"),
        ('[serving]\nhost = "0.0.0.0"\n', "reachable from other machines; set serving.api_keys"),
        ("[serving]\nmin_engine_replicas = 3\n", "max_engine_replicas is 1, below min_engine_replicas, which is 3"),
        (
            '[ray]\ntraining_nodes = "gpu"\n',
            "ray.training_nodes names a resource of a cluster's nodes, but ray.address is 'local'; set",
        ),
        ('[ray]\naddress = "auto"\nengine_nodes = "two words"\n', "ray.engine_nodes: String should match pattern"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(toml: str, words: str) -> None:
    assert words in refused(toml)


def test_an_exposed_service_with_a_key_is_allowed() -> None:
    assert load_settings('[serving]\nhost = "0.0.0.0"\napi_keys = ["k"]\n', {}).serving.host == "0.0.0.0"


def test_secrets_are_never_printed() -> None:
    environ = {"HEADRACE_KAFKA__SASL_PLAIN_PASSWORD": "hunter2", "HEADRACE_SERVING__API_KEYS": "hunter2"}
    settings = load_settings("", environ)
    assert settings.kafka.sasl_plain_password == SecretStr("hunter2")
    for text in (repr(settings), str(settings), settings.model_dump_json(), json.dumps(settings.model_dump(mode="json"))):
        assert "hunter2" not in text
    assert "hunter2" not in refused(environ=environ | {"HEADRACE_KAFKA__SECURITY_PROTOCOL": "SASL"})
    assert "hunter2" not in refused('[kafka]\nsasl_plain_password = ["hunter2"]\n')


def test_settings_cannot_change_under_a_running_process() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().serving.port = 1  # type: ignore[misc]


def test_the_fingerprint_is_a_hash_of_canonical_json_and_nothing_else() -> None:
    settings = Settings()
    canonical = json.dumps({"packing": settings.packing.model_dump(mode="json")}, sort_keys=True, separators=(",", ":")).encode()
    assert fingerprint(settings, ["packing"]) == hashlib.sha256(canonical).hexdigest()
    assert fingerprint(settings, ["dedup", "packing"]) == fingerprint(settings, ["packing", "dedup"])


@pytest.mark.parametrize(
    "name", ["dedup.feature_cap", "quality.min_words", "packing.sequence_length", "tokenizer.vocab_size", "ingest.max_document_bytes"]
)
def test_the_data_fingerprint_changes_with_every_setting_that_decides_bytes(name: str) -> None:
    section, key = name.split(".")
    other = getattr(getattr(Settings(), section), key) + (1 if section != "packing" else 8)
    assert data_fingerprint(load_settings("", {}, {name: other})) != data_fingerprint(Settings())


def test_the_data_fingerprint_does_not_depend_on_how_fast_the_same_bytes_are_made() -> None:
    slower = load_settings("", {}, {"tokenizer.engine": "huggingface", "tokenizer.check_fraction": 1.0})
    assert data_fingerprint(slower) == data_fingerprint(Settings())


def test_the_data_fingerprint_does_not_depend_on_where_things_run() -> None:
    where = {"kafka.bootstrap_servers": "b:9092", "formats.dataref_roots": ("/mnt/texts",), "formats.max_inline_bytes": 5_000}
    elsewhere = load_settings(TOML, {"HEADRACE_INGEST__SLICE_RECORDS": "7"}, where)
    assert data_fingerprint(elsewhere) == data_fingerprint(Settings())


def test_every_setting_is_documented_and_can_be_set_by_name() -> None:
    assert "kafka.bootstrap_servers" in known_names()
    for name in known_names():
        section, _, key = name.partition(".")
        model = Settings if not key else type(getattr(Settings(), section))
        assert model.model_fields[key or section].description or not key
    assert set(DATA_SECTIONS) <= {name.split(".")[0] for name in known_names()}
