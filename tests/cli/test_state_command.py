"""``rbl state`` and what ``rbl commit`` says, as a user types it."""

from __future__ import annotations

from pathlib import Path

from cli_story import Story

LICENSE = Path(__file__).parents[2] / "LICENSE"


def test_a_statement_is_made_and_shown(story: Story) -> None:
    before = story.state()
    made = story.json(
        "state", "polite", "--license", "cc-by-nc-4.0", "--dataset", "org/talk@v1=cc-by-nc-4.0",
        "--dataset", "org/more", "--source", "our run 12", "--base-revision", "a" * 40, "--meta", "team=core",
        "--author", "Grace",
    )  # fmt: skip
    said = made["said"]
    assert (made["role"], made["name"], said["declared"], said["sources"]) == (
        "behavior", "polite", ["CC-BY-NC-4.0"], ["our run 12"],
    )  # fmt: skip
    assert said["datasets"] == [
        {"name": "org/more", "revision": None, "licenses": []},
        {"name": "org/talk", "revision": "v1", "licenses": ["CC-BY-NC-4.0"]},
    ]
    assert made["statements"][-1]["statement"] == made["statement"]
    assert {claim["origin"] for claim in made["statements"][-1]["claims"]} == {"command line"}
    shown = story.json("state", "polite")
    assert (shown.pop("statement"), shown["statements"]) == (None, made["statements"])
    assert story.state() == before  # no commit, no ref, no operation

    text = story.ok("state", "polite")
    assert "licence declared  CC-BY-NC-4.0" in text
    assert "org/talk@v1, CC-BY-NC-4.0" in text
    assert "org/more, licence not stated" in text
    assert text.count("Grace, 20") == 1


def test_a_conclusion_by_a_text(story: Story) -> None:
    text = story.ok("state", "identity", "--license-file", LICENSE, "--concluded", "apache-2.0", "--author", "Grace")
    assert "licence concluded  Apache-2.0" in text
    assert "Apache-2.0 by text" in text
    assert "made now" in text


def test_the_text_is_kept_and_printed(story: Story, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_bytes(b"Be kind.\r\n\x1b[31mRed.\n")
    assert "rbl state polite --text" in story.ok("state", "polite", "--license-file", tmp_path / "terms.txt")
    document = story.json("state", "polite", "--text")
    assert [(text["path"], text["text"]) for text in document["texts"]] == [("terms.txt", "Be kind.\r\n\x1b[31mRed.\n")]
    text = story.ok("state", "polite", "--text")
    assert "no licence that is known\n\nBe kind.\n\\x1b[31mRed.\n" in text
    assert "no text of terms is known" in story.ok("state", "brief", "--text")
    assert story.run("state", "polite", "--text", "--license", "mit").exit_code == 2
    assert story.json("state", "nobody", "--text", code=1)["code"] == "no_such_part"


def test_a_mistake_is_taken_back(story: Story) -> None:
    story.ok("state", "polite", "--dataset", "org/talk=mit", "--source", "nowhere")
    made = story.json("state", "polite", "--retract", "dataset=org/talk", "--retract", "source", "--author", "Grace")
    assert (made["said"]["datasets"], made["said"]["sources"]) == ([], [])
    text = story.ok("state", "polite")
    assert "org/talk=mit" in text  # what was said stays in the record
    assert "dataset=org/talk" in text
    assert "org/talk=mit (command line; stands no more)" in text
    refused = story.json("state", "polite", "--retract", "dataset=org/talk", code=2)
    assert "nothing that stands" in refused["error"]
    assert refused["hint"]


def test_refusals(story: Story) -> None:
    failed = story.run("state", "identity", "--license", "apche-2.0")
    assert failed.exit_code == 2
    assert "'apche-2.0' is not a licence that is known" in failed.stderr
    assert "Did you mean Apache-2.0" in failed.stderr
    failure = story.json("state", "nobody", "--license", "mit", code=1)
    assert (failure["code"], failure["hint"].split(".")[0]) == ("no_such_part", "It has: identity, polite, brief")
    assert story.json("state", "polite", "--license-file", "nowhere", code=1)["code"] == "bad_input"
    assert story.json("state", "polite", "--dataset", "=mit", code=2)["code"] == "usage"
    assert story.json("commit", "-m", "x", "--dataset", "a=b (", "--remove", "polite", code=2)["code"] == "usage"


def test_what_a_commit_says(story: Story) -> None:
    story.ok(
        "commit", "-m", "again", "--behavior", f"polite={story.models / 'polite'}", "--allow-empty",
        "--license", "mit or zlib", "--license-file", LICENSE, "--dataset", "org/talk=mit",
        "--source", f"org/polite@{'b' * 40}", "--base-revision", "a" * 40,
    )  # fmt: skip
    said = story.json("state", "polite")["said"]
    assert said["declared"] == ["MIT OR Zlib", "Apache-2.0"]
    assert (said["sources"], said["source_revision"], said["base_revision"]) == (["org/polite"], "b" * 40, "a" * 40)
    assert said["datasets"] == [{"name": "org/talk", "revision": None, "licenses": ["MIT"]}]
