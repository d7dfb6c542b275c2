#!/bin/bash
# One run over several hosts of a Slurm cluster, one process per GPU. From the repository's root:
#
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=12:00:00 launch/multihost.sh \
#     --config=configs/chasppraunet.py --config.data.root=DIR --workdir=RUN
#
# Its arguments are those of `spinejax train`. All hosts must see DIR and RUN. Before its time ends,
# and when it is preempted, the run saves, and is queued again to go on.
#SBATCH --job-name=spinejax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@90

# Slurm may signal this shell, too; it lives on to see what became of the run.
trap : TERM
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -m spinejax train "$@"
status=$?
# 75: stopped with everything saved. A job that is cancelled or requeued already is left alone.
if [ "$status" -eq 75 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
