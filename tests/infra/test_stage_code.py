"""dvc.yaml names the code of each stage: all that its module imports, and nothing else."""

from __future__ import annotations

from pathlib import Path

from infra.stage_code import BEGIN, END, STAGES, closure, faults, in_dvc_yaml, listed, rewritten

ROOT = Path(__file__).resolve().parents[2]


def test_every_stage_lists_the_closure_of_its_imports() -> None:
    assert faults() == [], "run: python -m infra.stage_code --write"
    assert in_dvc_yaml((ROOT / "dvc.yaml").read_text()).keys() == set(STAGES)


def test_what_a_stage_runs_makes_it_stale() -> None:
    assert "components/learning/embed.py" in closure("benchmark")
    assert "components/evaluation/probing/online.py" in closure("pretrain") & closure("distill")
    assert "components/web/formats/warc.py" in closure("crawl") & closure("curate")


def test_planners_and_questions_about_images_make_no_stage_stale() -> None:
    for stage in STAGES:
        assert not [
            file for file in closure(stage) if file.startswith(("components/planning", "components/provenance"))
        ]


def tree(root: Path) -> None:
    files = {
        "a/__init__.py": "", "a/__main__.py": "from components.a.run import main", "a/stage.py": "",
        "a/run.py": "def main():\n    from components.b import one\n    import components.c.deep.file\n",
        "b/__init__.py": "", "b/one.py": "from components.errors import X", "b/two.py": "",
        "c/__init__.py": "", "c/deep/__init__.py": "", "c/deep/file.py": "", "planning/__init__.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (root / "components" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "components" / name).write_text(text)
    (root / "components/__init__.py").write_text("")
    (root / "components/errors.py").write_text("from components.planning import y\n")


def test_imports_inside_functions_count_and_a_folder_is_named_when_all_of_it_is_used(tmp_path: Path) -> None:
    tree(tmp_path)
    found = closure("a", tmp_path)
    assert "components/c/deep/file.py" in found
    assert not any("errors" in file or "planning" in file for file in found)  # exempt, with what only that imports
    assert listed(found, tmp_path) == [
        "components/a", "components/b/__init__.py", "components/b/one.py", "components/c",
    ]  # fmt: skip


def test_writing_replaces_what_is_listed_and_leaves_the_rest(tmp_path: Path) -> None:
    tree(tmp_path)
    before, after = "stages:\n  a:\n    deps:\n      - data/x\n", "    outs: []\n"
    text = f"{before}      {BEGIN}\n      - components/gone.py\n      {END}\n{after}"
    made = rewritten(text, tmp_path)
    assert in_dvc_yaml(made) == {"a": listed(closure("a", tmp_path), tmp_path)}
    assert made.startswith(before)
    assert made.endswith(f"      {END}\n{after}")
    assert rewritten(made, tmp_path) == made
