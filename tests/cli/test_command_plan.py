"""`python -m tracer.plan`, and the same options on the main command."""

from __future__ import annotations

import json

import pytest
from command_line import DEEPSEEK, deepseek, transformers_folder

from tracer import plan
from tracer.run import main as tracer_main


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK))
    return str(path)


@pytest.fixture
def run(model, capsys):
    def call(*options, main=plan.main, cluster="h100_ib"):
        arguments = ["--hf-config", model, "--seq", "64", *options]
        code = main([*arguments, "--cluster", cluster] if cluster else arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_plan_is_priced_into_a_table_and_files(run, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run(
        "--gpus", "16", "--pp", "2", "--ep", "8", "--microbatches", "8", "--tokens-budget", "1e12",
        "--price", "2", "--out", str(out), "--verbose",
    )  # fmt: skip
    assert code == 0
    for words in ("step", "exposed communication", "pipeline bubble", "USD at 2 an hour", "fits",
                  "MFU", "note: "):  # fmt: skip
        assert words in text
    made = json.loads((out / "plan.json").read_text())
    assert made["gpus"] == 16
    assert made["plan"] == "ep=8 pp=2 dp=8 zero=1 micro_batches=8"
    assert made == json.loads((out / "report.json").read_text())["plan"]
    for name in ("report.html", "report.md", "figures/pipeline.svg", "figures/pipeline.png",
                 "tables/messages.csv", "tables/kernels.csv"):  # fmt: skip
        assert (out / name).stat().st_size > 500, name
    events = json.loads((out / "pipeline.json").read_text())["traceEvents"]
    assert sum(e["ph"] == "X" for e in events) == 2 * 2 * 8  # ranks x (F, B) x micro-batches


def test_a_training_plan_runs_an_engines_kernels_or_those_of_the_program(run):
    options = ("--gpus", "8", "--ep", "8", "--microbatches", "2", "--json")
    steps = [
        json.loads(run(*options, *more)[1])["step_s"]
        for more in ((), ("--engine", "fused"), ("--engine", "traced"))
    ]
    assert steps[0] == steps[1] < steps[2]


def test_a_plan_that_does_not_fit_says_what_would_and_shows_no_throughput(run):
    # 1 GB with 0.99999 of it kept free leaves 10 kB.
    options = ("--gpus", "2", "--microbatches", "2", "--capacity", "1e9", "--reserve")
    code, text, _ = run(*options, "0.99999")
    assert code == 0
    assert "INFEASIBLE: does not fit" in text
    assert "HYPOTHETICAL" in text
    assert "exposed communication" in text
    assert "tokens/s" not in text
    assert "MFU" not in text
    assert "GPU hours" not in text
    made = json.loads(run(*options, "0.99999", "--json")[1])
    assert made["step_s"] is made["breakdown_s"] is None
    assert made["advice"] in text
    assert "advice" not in json.loads(run(*options, "0.1", "--json")[1])


def test_the_main_command_prices_the_same_plan(run):
    options = ("--pp", "2", "--dp", "2", "--microbatches", "4")
    own = run(*options)
    other = run(*options, main=tracer_main)
    assert own[0] == other[0] == 0
    assert own[1] == other[1]
    compared = ("--compare", "dp=4 zero=1 micro_batches=4")
    own, other = run(*options, *compared), run(*options, *compared, main=tracer_main)
    assert own[0] == other[0] == 0
    assert "compared with" in own[1]
    assert own[1] == other[1]


def test_options_of_the_main_command_that_a_plan_has_too(run):
    options = ("--pp", "2", "--microbatches", "2", "--strict", "--layers", "2", "--exec",
               "efficient", "--optimizer", "adamw", "--json")  # fmt: skip
    code, text, _ = run(*options, main=tracer_main)
    assert code == 0
    assert json.loads(text)["flops"] < json.loads(run("--pp", "2", "--microbatches", "2",
                                                      "--json")[1])["flops"]  # fmt: skip
    code, text, _ = run("--dp", "2", "--phase", "decode", "--batch", "3", "--json",
                        main=tracer_main)  # fmt: skip
    assert json.loads(text)["batch_per_data_rank"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--chip", "h100_sxm"), "--chip does not go with a plan: --cluster names the chip"),
        (("--module", "a.b:c"), "--module does not go with a plan"),
        (("--exported", "a.pt2"), "--exported does not go with a plan"),
        (("--input", "x:bf16[B,3]"), "--input does not go with a plan"),
        (("--exec", "naive"), "--exec naive does not go with a plan"),
        (("--exec", "naive", "--exec", "efficient"), "--exec naive does not go with a plan"),
        (("--optimizer", "none"), "--optimizer none does not go with a plan"),
        (("--full",), "--full does not go with a plan"),
        (("--checkpoint", "."), "--checkpoint does not go with a plan"),
        (("--batch", "8"), "--batch does not go with a training plan"),
        (("--context", "8"), "--context goes with decode, this is training"),
        (("--phase", "decode", "--zero", "2"), "--zero goes with training, this is decode"),
        (("--phase", "decode", "--microbatches", "2"), "--microbatches goes with training"),
        (("--phase", "decode", "--phase", "prefill"), "for one --phase"),
        (("--phase", "forward"), "--phase 'forward': choose one of training"),
        (("--layers", "99"), "--layers 99"),
        (("--phase", "decode", "--mtp"), "--mtp goes with training, this is decode"),
        (("--mtp",), "the model has no module of multi-token prediction"),
        (("--out", "--"), "--out"),
    ],
)
def test_no_option_of_the_main_command_is_passed_over(run, options, says):
    code, out, err = run("--dp", "2", *options, main=tracer_main)
    assert code == 2
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert says in err


def test_every_option_of_the_main_command_is_known_to_plans():
    from tracer import plan_options, run

    known = {*plan_options._FROM_MAIN, *plan_options._NOT_FROM_MAIN, "dtype", "seq", "batch",
             "phase", "exec", "optimizer"}  # fmt: skip
    lists = {"list_chips", "list_clusters", "list_models"}  # answered before anything else
    assert known | lists == set(vars(run.parser().parse_args([])))


def test_a_plan_that_trains_the_module_of_multi_token_prediction(run, tmp_path):
    config = ("--hf-config", deepseek(tmp_path, num_nextn_predict_layers=1))
    options = (*config, "--pp", "2", "--dp", "2", "--microbatches", "4")
    code, text, _ = run(*options, "--mtp")
    assert code == 0
    assert "plan: pp=2 dp=2 zero=1 micro_batches=4 mtp\n" in text
    assert "causal with MTP's FLOPs" in text
    assert run(*options, "--mtp", main=tracer_main)[1] == text
    with_it, without = (json.loads(run(*options, *more, "--json")[1]) for more in (["--mtp"], []))
    assert (with_it["mtp"], without["mtp"]) == (True, False)
    assert with_it["flops"] == without["flops"]
    assert with_it["flops_mtp"] > without["flops_mtp"] == 0
    # As it is printed, the plan is the other side of a comparison; and so is its report.
    out = tmp_path / "out"
    run(*options, "--mtp", "--out", str(out))
    code, compared, _ = run(*options, "--compare", with_it["plan"])
    assert code == 0
    assert "MFU with MTP's FLOPs, causal" in compared
    assert run(*options, "--compare", str(out))[1] == compared
    code, text, _ = run(*config, "--mtp", "--search", "--gpus", "2", "--global-batch", "8",
                        "--schedule", "1f1b", "--json")  # fmt: skip
    assert code == 0
    ranked = json.loads(text)["ranked"]
    assert ranked
    assert all(step["mtp"] for step in ranked)


def test_strict_refuses_ops_without_a_formula(monkeypatch, run, tmp_path):
    from tracer.predict import detail

    monkeypatch.setattr(detail, "_unmodelled", lambda blocks: {"aten.odd": 3})
    out = tmp_path / "out"
    code, text, err = run("--dp", "2", "--strict", "--out", str(out))
    assert code == 2
    assert not text
    assert "--strict: no formula for aten.odd (3)" in err
    assert not out.exists()
    assert run("--dp", "2", "--out", str(out))[0] == 0
    assert "Without a formula, priced by their bytes: `aten.odd`" in (out / "report.md").read_text()


def test_a_server_that_does_not_fit_says_what_would(run):
    # 65,536 latents of 40 elements in 6 layers are 31 MB a sequence: 4,096 of them are 129 GB.
    options = ("--phase", "decode", "--context", "65536", "--batch", "4096")
    code, text, _ = run(*options)
    assert code == 0
    assert "INFEASIBLE" in text
    most = int(rows_of(text)["largest batch of a data rank"].replace(",", ""))
    assert f"what fits: up to {most:,} sequences of a data rank, or keys up to" in text
    assert "INFEASIBLE" not in run(*options[:-1], str(most))[1]
    code, text, _ = run(*options, "--reserve", "0.999999")
    assert "weights alone are" in text
    made = json.loads(run(*options, "--reserve", "0.999999", "--json")[1])
    free = made["memory"]["capacity"] - made["memory"]["reserve"]
    assert made["memory"]["weights"] > free
    gpus = int(made["advice"].rpartition("at least ")[2].split()[0].replace(",", ""))
    assert gpus == -(-made["memory"]["weights"] // free)


def test_decode_and_prefill(run):
    code, text, _ = run("--phase", "decode", "--dp", "2", "--batch", "2", "--json")
    assert code == 0
    made = json.loads(text)
    assert made["kind"] == "decode"
    assert made["tpot_s"] > 0
    assert made["largest_batch"] > 2
    code, text, _ = run("--phase", "prefill", "--tp", "2", "--batch", "2", "--price", "3")
    assert code == 0
    assert "TTFT" in text
    assert "USD at 3 an hour" in text


def test_a_search_ranks_what_fits_and_says_why_others_do_not(run, tmp_path):
    table = tmp_path / "plans.csv"
    code, text, _ = run(
        "--search", "--gpus", "4", "--global-batch", "8", "--schedule", "1f1b", "--csv", str(table),
        "--tp", "2", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0
    assert "plans fit" in text
    rows = table.read_text().splitlines()
    assert (tmp_path / "out" / "plans.csv").read_text() == table.read_text()
    assert (tmp_path / "out" / "figures" / "step_memory.svg").stat().st_size > 1000
    assert "Plans that fit" in (tmp_path / "out" / "report.html").read_text()
    # tp 1 or 2, pp any divisor of what is left, ep what divides 16 experts and a stage's ranks:
    # tp=1: pp=1 ep 1,2,4; pp=2 ep 1,2; pp=4 ep 1. tp=2: pp=1 ep 1,2,4; pp=2 ep 1,2.
    assert len(rows) - 1 == 6 + 5
    steps = [float(row.split(",")[-4]) for row in rows[1:] if row.split(",")[-4]]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--gpus", "10", "--pp", "4"), "does not divide by tp * cp * pp = 4"),
        (("--gpus", "8", "--pp", "2", "--dp", "8"), "is not tp * cp * pp * dp"),
        (("--gpus", "32768"), "goes up to 16,384"),
        (("--pp", "4", "--microbatches", "2"), "do not fill PP=4"),
        (("--pp", "7", "--microbatches", "8"), "leaves stages empty"),
        (("--pp", "2", "--schedule", "fastest"), "no pipeline schedule"),
        (("--ep", "3", "--dp", "3"), "16 experts do not divide by EP=3"),
        (("--global-batch", "5", "--dp", "2"), "does not divide by 2 sequences"),
        (("--phase", "chat"), "choose one of training"),
        (("--search",), "needs --gpus and --global-batch"),
        (("--search", "--phase", "decode", "--gpus", "2"), "needs --gpus and --global-batch"),
        (("--search", "--phase", "decode", "--batch", "2"), "--batch does not go with --search"),
        (("--search", "--phase", "decode", "--zero", "1"), "--zero goes with training"),
        (
            ("--search", "--phase", "decode", "--out", "x"),
            "--out: a search for servers has no report",
        ),
        (("--batch", "4"), "--batch goes with prefill and decode, this is training"),
        (("--overlap",), "--overlap goes with prefill and decode"),
        (("--phase", "decode", "--recompute", "full"), "--recompute goes with training"),
        (("--phase", "prefill", "--context", "9"), "--context goes with decode, this is prefill"),
        (("--csv", "a.csv"), "--csv goes with --search"),
        (("--phase", "prefill", "--mtp"), "--mtp goes with training, this is prefill"),
        (("--mtp",), "the model has no module of multi-token prediction (num_nextn_predict"),
        (("--gpus", "4", "--pp", "2", "--mtp"), "the model has no module of multi-token"),
        (("--search", "--gpus", "4", "--global-batch", "8", "--mtp"), "the model has no module"),
        (("--compare", "dp=1 mtp"), "the model has no module of multi-token prediction"),
        (("--top", "3"), "--top goes with --search"),
        (("--search", "--dp", "2"), "--dp does not go with --search, which tries all plans"),
        (("--search", "--compare", "x"), "--compare does not go with --search"),
        (("--seq", "0"), "--seq 0: give at least 1"),
        (("--zero", "9"), "zero=9"),
        (("--price", "-2"), "price=-2"),
        (("--imbalance", "0.2"), "imbalance=0.2"),
        (("--routing", "zipf:much"), "--routing zipf:much: give the exponent as a number"),
        (("--routing", "even"), "--routing even: give uniform, zipf:0.5 or a file"),
        (("--routing", "zipf:-1"), "routing=zipf:-1: give an exponent between 0 and 10"),
        (("--routing", __file__), "a JSON list of numbers, or a number a line"),
        (("--placement", "anywhere"), "placement='anywhere': choose contiguous"),
        (("--placement", "balanced", "--imbalance", "2"), "give it, or these"),
        (("--phase", "decode", "--engine", "vllm"), "engine='vllm': choose fused or traced"),
        (("--engine", "megatron"), "engine='megatron': choose fused or traced"),
        (("--assume", "load=hot"), "load='hot': choose 'kernel' or 'sustained'"),
        (("--dp", "0"), "--dp 0"),
        (("--capacity", "80"), "--capacity 80: give bytes of a GPU, 80e9"),
        (("--search", "--gpus", "8", "--global-batch", "0"), "--global-batch 0: give at least 1"),
        (("--search", "--gpus", "0", "--global-batch", "8"), "--gpus 0: give at least 1"),
        (("--search", "--gpus", "8", "--global-batch", "8", "--schedule", "1f2b"), "did you mean"),
        (
            ("--search", "--gpus", "8", "--global-batch", "8", "--csv", "/no/such/a.csv"),
            "no such folder: /no/such",
        ),
        (
            ("--search", "--gpus", "8", "--global-batch", "8", "--csv", "/tmp"),
            "--csv /tmp: is a folder; give a file",
        ),
        (
            ("--pp", "2", "--schedule", "zbv", "--chunks", "3", "--microbatches", "4"),
            "zbv has 2 chunks a rank, not 3",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, options, says):
    code, out, err = run(*options)
    assert code == 2
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert says in err


def rows_of(text: str) -> dict[str, str]:
    """The lines of a plan's table by their first column."""
    lines = (line.split("  ") for line in text.splitlines())
    return {next(filter(None, parts)).strip(): parts[-1].strip() for parts in lines if any(parts)}


def test_slots_on_the_terminal_say_what_they_sum_and_add_up_to_the_step(run):
    code, text, _ = run("--pp", "2", "--dp", "2", "--microbatches", "8")
    assert code == 0
    assert rows_of(text)["the same by slot"].startswith("sums over the step, mean of the ranks")
    assert "slots are less sure than the step" in text
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

    def seconds(words: str) -> float:
        number, unit, *_ = words.split()
        return float(number) * units[unit.rstrip(",")]

    rows = rows_of(text)
    names = ("forward (1F)", "input gradient (1B)", "weight gradient (1W)",
             "bubble, data ranks, optimizer")  # fmt: skip
    # Three figures each.
    assert sum(seconds(rows[name]) for name in names) == pytest.approx(
        seconds(rows["step"]), rel=0.01
    )
    assert "the same by slot" not in run("--dp", "2")[1]


def test_a_plan_without_expert_ranks_names_no_uneven_experts(run):
    assert "uneven experts" not in run("--dp", "2")[1]
    assert "uneven experts" in run("--dp", "2", "--ep", "2")[1]


def test_small_prices_keep_three_figures(run):
    text = run("--phase", "decode", "--batch", "64", "--dp", "1", "--price", "0.001")[1]
    hours, dollars = rows_of(text)["GPU hours for 1e6 tokens"].split(",")[:2]
    made = json.loads(run("--phase", "decode", "--batch", "64", "--dp", "1", "--json")[1])
    real = 1e6 / made["tokens_per_s"] / 3600
    assert real < 0.1
    assert float(hours) == pytest.approx(real, rel=0.005)
    assert float(dollars.split()[0]) == pytest.approx(real * 0.001, rel=0.005)


def test_the_clusters_are_listed_as_by_the_main_command(capsys):
    assert plan.main(["--list-clusters"]) == 0
    own = capsys.readouterr().out
    assert tracer_main(["--list-clusters"]) == 0
    assert own == capsys.readouterr().out
    assert "h800_ib" in own


def test_a_csv_that_cannot_be_written_loses_no_search(monkeypatch, run, tmp_path):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    code, text, err = run(
        "--search", "--gpus", "2", "--global-batch", "4", "--schedule", "1f1b",
        "--csv", str(tmp_path / "a.csv"),
    )  # fmt: skip
    assert code == 2
    assert "plans fit" in text
    assert "a.csv: No space left on device" in err


@pytest.mark.parametrize("options", [("--gpus", "2"), ("--gpus", "2", "--pp", "2")])
def test_models_of_transformers_have_no_module_to_train(run, tmp_path, options):
    folder = transformers_folder("llama", tmp_path)
    code, out, err = run("--hf-config", folder, *options, "--mtp")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "transformers' modelling code has no module of multi-token prediction" in err
    code, out, err = run("--hf-config", folder, *options, "--compare", "dp=2 mtp")
    assert (code, out) == (2, "")
    assert "mtp=True: transformers' modelling code has no module" in err


@pytest.mark.parametrize("search", [False, True])
def test_a_chip_that_nobody_measured_kernels_on_is_told(run, search):
    options = ("--phase", "decode", "--gpus", "2")
    options += ("--search", "--global-batch", "4") if search else ("--batch", "2")
    for cluster, foreign in (("mi300x_roce", True), ("h100_ib", False)):
        code, text, _ = run(*options, cluster=cluster)
        assert code == 0
        assert ("UNCALIBRATED: kernel constants measured on" in text) == foreign


def test_servers_are_searched(run, tmp_path):
    options = (
        "--search",
        "--phase",
        "decode",
        "--gpus",
        "4",
        "--global-batch",
        "8",
        "--context",
        "64",
    )
    code, text, _ = run(*options, "--csv", str(tmp_path / "all.csv"))
    assert code == 0
    assert text.splitlines()[1].split() == [
        "plan", "TPOT", "batch", "tokens/s", "a", "GPU", "exposed", "GB",
    ]  # fmt: skip
    made = json.loads(run(*options, "--json")[1])
    assert made["ranked"][0]["kind"] == "decode"
    assert made["ranked"][0]["plan"] in text
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert len(rows) == 1 + int(text.split()[0]) + sum(made["dropped"].values())


def test_a_cluster_is_named(run):
    code, _, err = run("--pp", "2", cluster=None)
    assert code == 2
    assert "--cluster" in err


def test_a_schedule_that_waits_in_a_circle_is_refused(monkeypatch, run):
    from tracer.parallel.schedules import registry
    from tracer.parallel.schedules.schedule import Action, Schedule

    def stuck(ranks, microbatches):
        # Rank 0 waits for the backward of micro-batch 0 before it sends micro-batch 1, whose
        # forward rank 1 wants before it turns round.
        first = (Action("F", 0, 0), Action("B", 0, 0), Action("F", 0, 1), Action("B", 0, 1))
        last = (Action("F", 1, 1), Action("B", 1, 1), Action("F", 1, 0), Action("B", 1, 0))
        return Schedule("stuck", 2, 2, ((0,), (1,)), (first, last))

    monkeypatch.setattr(registry, "SCHEDULES", {"stuck": stuck})
    code, _, err = run("--pp", "2", "--schedule", "stuck", "--microbatches", "2")
    assert code == 2
    assert "deadlock" in err
