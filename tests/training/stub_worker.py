"""Stands for the training process in tests of the launcher: does what the job's run name says, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main(job_file: Path) -> int:
    job = json.loads(job_file.read_bytes())
    folder, rank, what = Path(job["folder"]), os.environ["RANK"], job["config"]["name"]
    (folder / f"pid-{rank}").write_text(f"{os.getpid()} {os.environ['WORLD_SIZE']}")
    sys.stdout.write(f"rank {rank} is here\n")
    sys.stdout.flush()
    if what == "stubborn":  # and has a child that would outlive it
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / f"pid-{rank}-child").write_text(f"{child.pid} 0")
    if what in ("sleep", "stubborn"):
        time.sleep(600)
    if what == "fail":
        time.sleep(0.0 if rank == "1" else 2.0)
        report = {"time": time.time(), "rank": int(rank), "type": "ValueError", "problem": f"rank {rank} broke"}
        report |= {"remedy": "", "known": False, "memory": False, "traceback": f"Traceback of rank {rank}"}
        (folder / f"error-{rank}.json").write_text(json.dumps(report))
        return 1
    if what == "memory" and (job["micro_batch"] or 8) > 2:
        report = {"time": time.time(), "rank": 0, "type": "TrainingError", "problem": "out of memory", "remedy": "less"}
        (folder / "error-0.json").write_text(json.dumps({**report, "known": True, "memory": True, "traceback": ""}))
        return 1
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "resumed":  # from step 2: what comes after it is written again
        time.sleep(0.5)
        rows = [{"step": step, "train/loss": float(step)} for step in range(5)]
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "start"}) + "\n")
        with (folder / "history.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[3:])
        (folder / "result.json").write_text(json.dumps({"steps": 4}))
        return 0
    (folder / "events.jsonl").write_text(json.dumps({"kind": "message", "text": f"micro {job['micro_batch']}"}) + "\n")
    (folder / "result.json").write_text(json.dumps({"steps": 3}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
