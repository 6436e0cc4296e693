"""The workflow on its engine: on this machine, and on a Slurm that is started and stopped here."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.results import storage
from calib_utils.results.storage import KEY

ROOT = paths.project_root()
SNAKEMAKE = Path(os.environ.get("CALIB_UTILS_SNAKEMAKE", ROOT / ".venv-workflow/bin/snakemake"))
SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PATIENCE = 400  # seconds until a wait is a failure
pytestmark = [
    pytest.mark.notebooks,
    pytest.mark.skipif(
        not SNAKEMAKE.is_file(), reason=f"no Snakemake at {SNAKEMAKE}: make workflow-env"
    ),
]
LOAD = """\
import calib_utils as cu
from calib_utils import paths

language_model = cu.load_model(model, dtype=dtype, device=device)
rows = results_dir or paths.default_results_dir()"""
EVALUATE = (
    'cu.evaluate(language_model, "{}", rules=["none", "top_k=5"], end="line", results_dir=rows)'
)
# Tells its job, and waits: whoever holds the gate decides what happens in the middle of a run.
GATE = """\
import os
import time
from pathlib import Path

with open(f"gate/{language_model.key}", "a") as stream:
    stream.write(f"{os.environ.get('SLURM_JOB_ID')} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
while not Path("gate/open").exists():
    time.sleep(0.1)"""
ALL = """\
from pathlib import Path

from calib_utils import paths
from calib_utils.studies import model_panel

folder = Path(results_dir or paths.default_results_dir())
for key in model_panel.keys_in(folder):
    for record in sorted(folder.glob(f"{key}/*/provenance.json")):
        print(record.parent.relative_to(folder))"""
NOTEBOOKS = {
    "00_rows": [LOAD, EVALUATE.format("rng-1")],
    "01_gate": [LOAD, GATE, EVALUATE.format("rng-2")],
    "05_all": (["all-results"], ['results_dir = ""', ALL]),
}


@pytest.fixture
def make_project(small_project):
    """A project with three small notebooks, whose gate is open or not."""

    def get(folder, gate_open):
        parts = ("calib_utils", "workflow", "data/tasks", "data/panel")
        small_project(folder, NOTEBOOKS, parts)
        (folder / "gate").mkdir()
        if gate_open:
            (folder / "gate" / "open").touch()
        return folder

    return get


@pytest.fixture
def models(tiny_folder, tmp_path):
    """Two checkpoints by name."""
    made = {"alpha": "llama", "beta": "qwen3"}
    for name, architecture in made.items():
        shutil.copytree(tiny_folder(architecture, chat=True), tmp_path / name)
    return {name: str(tmp_path / name) for name in made}


def environment(project, **more):
    own = {"PYTHONPATH": str(project), "PATH": PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **more}


def driver(project, models, profile, *options, settings=(), **more):
    """Starts Snakemake with the project's Snakefile; everything it says goes into a file."""
    command = [str(SNAKEMAKE), "--snakefile", "workflow/Snakefile", "panel"]
    command += ["--workflow-profile", f"workflow/profiles/{profile}", *options]
    command += ["--config", f"models={','.join(models)}", f"python={sys.executable}", *settings]
    with open(project / "driver.log", "ab") as log:
        return subprocess.Popen(
            command, cwd=project, env=environment(project, **more), stdout=log, stderr=log
        )


def ended(process, project):
    """The exit status, and what was said since the last time this was asked."""
    status = process.wait(PATIENCE)
    log = project / "driver.log"
    text = log.read_text()
    log.unlink()
    return status, text


def told(text, word):
    """Which notebooks on which models a run said something about."""
    lines = [line.split(": ") for line in text.splitlines() if " on " in line and ": " in line]
    return {line[0].strip() for line in lines if line[1].startswith(word)}


def everything(models):
    return {f"{n} on {m}" for n in ("00_rows", "01_gate") for m in models} | {"05_all on panel"}


def tables(project, models):
    folders = (project / "data" / "results" / name for name in models)
    return {str(file): file.read_bytes() for own in folders for file in own.glob("*/*.csv")}


def pages(project):
    found = (project / "book").rglob("*.ipynb")
    return {str(path.relative_to(project)): path.read_bytes() for path in found}


def leftovers(project):
    """Drafts below rows and pages; locks stay, they are empty."""
    hidden = [p for name in ("book", "data/results") for p in (project / name).rglob(".*")]
    return [p for p in hidden if p.name != ".lock"]


def test_on_this_machine_only_what_changed_is_executed(
    models, tmp_path, make_project, write_notebook
):
    """A model that cannot be read stops all before a job begins; then without it, and an edit."""
    project = make_project(tmp_path / "project", gate_open=True)
    broken = tmp_path / "broken"
    broken.mkdir()

    def run(*names):
        return ended(driver(project, names, "default", "--cores", "4", "--retries", "0"), project)

    status, text = run(str(broken), *models.values())
    assert status == 1, text
    assert "broken/config.json cannot be read" in text and told(text, "never run") == set(), text
    status, text = run(*models.values())
    assert status == 0, text
    assert told(text, "never run") == everything(models), text
    first = pages(project), tables(project, models)
    assert len(first[0]) == len(everything(models)), text
    contents = (project / "book" / "_toc.yml").read_text()
    assert all(f"results/{name}/" in contents for name in models) and "panel/" in contents
    status, text = run(*models.values())
    assert status == 0, text
    assert told(text, "current") == everything(models), text
    assert (pages(project), tables(project, models)) == first
    write_notebook(project, "00_rows", [*NOTEBOOKS["00_rows"], "1 + 1"])
    status, text = run(*models.values())
    assert status == 0, text
    changed = {f"00_rows on {name}" for name in models}
    assert told(text, "its source changed") == changed
    assert told(text, "current") == everything(models) - changed
    assert leftovers(project) == []


@pytest.fixture
def slurm(free_port):
    """A Slurm of one node with four pretended GPUs; hands out the variables of its commands."""
    missing = [name for name in SLURM if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    # Sockets have short names, and munged wants folders that nobody else may write to.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/slurm-XXXXXX"], text=True).strip())
    folder.chmod(0o755)
    user, host = getpass.getuser(), socket.gethostname().split(".")[0]
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    gpus = ("null", "zero", "full", "random")  # any device files will do
    (folder / "gres.conf").write_text("".join(f"Name=gpu File=/dev/{name}\n" for name in gpus))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    # The plugin's inner srun is not told of a configuration that is not in the usual place.
    real = shutil.which("srun", path=PATH)
    (folder / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {real} "$@"\n')
    (folder / "srun").chmod(0o755)
    controller, node = free_port(), free_port()
    (folder / "slurm.conf").write_text(
        f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    own = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}{os.pathsep}{PATH}"}
    with_own = {**os.environ, **own}
    munge = [f"--{n}={folder}/munge.{e}" for n, e in (("socket", "socket"), ("key-file", "key"))]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", host],
        ):
            with open(folder / f"{command[0]}.out", "wb") as log:
                daemons.append(subprocess.Popen(command, env=with_own, stdout=log, stderr=log))
            if command[0] == "munged":
                wait_for((folder / "munge.socket").exists, lambda: text_of(folder))
        up = ["sinfo", "--noheader", "--format=%T"]
        wait_for(
            lambda: (
                b"idle" in subprocess.run(up, env=with_own, capture_output=True, timeout=60).stdout
            ),
            lambda: text_of(folder),
        )
        yield own
        # A job outlives the daemons, so it has to go first.
        subprocess.run(["scancel", "--user", user], env=with_own, timeout=60)
        jobs = ["squeue", "--noheader"]
        wait_for(
            lambda: not subprocess.run(jobs, env=with_own, capture_output=True, timeout=60).stdout,
            lambda: text_of(folder),
        )
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(15)
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def text_of(folder):
    """What daemons or jobs said."""
    files = [*folder.rglob("*.out"), *folder.rglob("*.log")]
    return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in files)


def wait_for(condition, explain):
    """Waits until `condition()`, and fails with what `explain()` says."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.2)


def test_slurm_jobs_and_drivers_may_be_killed(slurm, models, tmp_path, make_project):
    """A job cancelled in the middle and retried, the driver killed and restarted: nothing lost."""
    project, plain = tmp_path / "project", tmp_path / "plain"
    make_project(project, gate_open=False)
    make_project(plain, gate_open=True)
    options = ["--slurm-status-command", "squeue", "--latency-wait", "10"]
    options += ["--slurm-init-seconds-before-status-checks", "2"]
    options += ["--seconds-between-status-checks", "2"]

    def start():
        return driver(project, models.values(), "slurm", *options, settings=["gpu_gb=80"], **slurm)

    def begun(name):
        file = project / "gate" / name
        return [line.split() for line in file.read_text().splitlines()] if file.is_file() else []

    def explain():
        logs = project / ".snakemake" / "slurm_logs"
        return (project / "driver.log").read_text()[-6000:] + text_of(logs)

    def run_by_hand(model, log):
        command = [sys.executable, "-m", "calib_utils", "run", "--model", model]
        with open(log, "wb") as told:
            own = environment(plain)
            return subprocess.Popen(command, cwd=plain, env=own, stdout=told, stderr=told)

    def waiting():
        return {n for n in models if f"another run of {n} is at work" in explain()}

    first = start()
    try:
        wait_for(lambda: begun("alpha") and begun("beta"), explain)
        subprocess.run(
            ["scancel", begun("alpha")[0][0]], env={**os.environ, **slurm}, check=True, timeout=60
        )
        wait_for(lambda: len(begun("alpha")) == 2, explain)
    finally:
        first.send_signal(signal.SIGKILL)
    first.wait()
    # Its jobs go on. A new driver submits them again; those wait, and find that nothing is left.
    second = start()
    by_hand = {name: run_by_hand(model, tmp_path / f"{name}.log") for name, model in models.items()}
    try:
        wait_for(lambda: waiting() == {*models}, explain)
        (project / "gate" / "open").touch()
        status, text = ended(second, project)
        assert status == 0, text
        for name, process in by_hand.items():
            assert process.wait(PATIENCE) == 0, (tmp_path / f"{name}.log").read_text()
    finally:
        for process in (second, *by_hand.values()):
            process.kill()
            process.wait()
    jobs = {name: begun(name) for name in models}
    assert {name: len(lines) for name, lines in jobs.items()} == {"alpha": 2, "beta": 1}
    assert len({job for lines in jobs.values() for job, _ in lines}) == 3
    assert {gpu for lines in jobs.values() for _, gpu in lines} <= {*"0123"}
    assert {*pages(project)} == {*pages(plain)}
    for name in models:
        for task in ("rng-1@end=line", "rng-2@end=line"):
            kept, other = (
                storage.read(root / "data" / "results" / name / task).settings
                for root in (project, plain)
            )
            assert not kept.duplicated(KEY).any()
            pd.testing.assert_frame_equal(kept, other, rtol=1e-3)
        assert sum(f"/{name}/" in file for file in tables(project, models)) == 2
    assert leftovers(project) == []
    assert not subprocess.check_output(["squeue", "--noheader"], env={**os.environ, **slurm})
    assert json.loads(pages(project)["book/panel/05_all.ipynb"])["cells"][-1]["outputs"]
