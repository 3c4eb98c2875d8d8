# Functions for the batch scripts: checks of the arguments, and requeueing of unfinished jobs.

# check_arguments ARGUMENT...: refuse --out and --resume, which the scripts set themselves.
check_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --out | --out=* | --resume)
        echo "$argument is set by this script; name the run folder with OUT=RUN sbatch ..." >&2
        exit 2
        ;;
    esac
  done
}

# status_of RUN: print the status in RUN/status.json, or nothing.
status_of() {
  sed -n 's/.*"status": "\([a-z]*\)".*/\1/p' "$1/status.json" 2>/dev/null || true
}

# train_and_requeue RUN COMMAND ARGUMENT...: train in a job step. Done ends the job; interrupted
# requeues it, for the same script to continue; failed fails it.
train_and_requeue() {
  local run=$1 status step told=""
  shift
  if [[ $(status_of "$run") == done ]]; then return; fi
  rm -f "$run/status.json" # so that a status found afterwards is of this start
  trap 'told=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # near the time limit: the step saves
  trap 'told=yes' TERM                                        # Slurm has told the step as well
  "$@" &
  step=$!
  while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done

  status=$(status_of "$run")
  echo "status of $run: ${status:-none}"
  if [[ $status == done ]]; then return; fi
  if [[ $status == failed || ($status != interrupted && -z $told) ]]; then return 1; fi
  # A job that Slurm itself is ending is not RUNNING: it requeues one that was preempted, and must
  # not get back one that was cancelled.
  if [[ $(squeue --noheader --job "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
}
