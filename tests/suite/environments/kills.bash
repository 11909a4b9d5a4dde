# Kills launchers with what is below them, at moments that the test has drawn, and says what is left. Runs inside an
# environment with bash, whose built-in commands do the waiting and the looking: a process costs 50 ms under gVisor.
#
# A line of /mnt/kills is a victim (launcher, below: init or keeper, or both), a moment (a stage, at which the launcher
# stops itself, or so many thousandths of a whole run), and whether the agent holds on or exits; or the word `sweep`.
O=/mnt/oubliette
# Texts that the agents' environments have, and this script's own has not.
MARK=$(</mnt/mark) BOB=$(</mnt/bob)
mkdir "$S" && cd "$S" || exit 1
mkfifo never go && exec 8<>never 9<>go || exit 1
step() { echo "== $1"; }
fail() { { echo "round $round ($victim at $moment, agent $does): $1"; cat errors neighbours; ps -e -o pid,ppid,stat,args; } >&2; exit 1; }
pause() { read -rt "$1" -u 8; }
# Nanoseconds would not make it finer: a moment of a few milliseconds is what a round can aim at.
now() { echo "${EPOCHREALTIME//[^0-9]/}"; }
# No function: in the background that would be a shell with the launcher below it.
run=("$O" run -q --wait 20s)
# What both agents leave everywhere: closed directories, and processes that are deaf and in sessions of their own.
agent='for dir in . "$HOME" "$TMPDIR"; do cd "$dir"; mkdir -p deep/er; : >"deep/er/left-$MARK"; chmod 0 deep; done
setsid sh -c "trap \"\" HUP INT QUIT TERM USR1; exec sleep 999" & cd /; setsid sh -c "(exec sleep 998) & exec sleep 997" &
[ "$1" = holds ] && exec sleep 996; exit 0'
# State and parent of a process (proc_pid_stat(5)); nothing when there is none.
state() {
  local line
  state= parent=
  { read -r line </proc/"$1"/stat; } 2>/dev/null && read -r state parent _ <<<"${line##*) }"
}
# The live child of a launcher. Where the kernel has no list of children, as under gVisor, there are few processes.
below() {
  local children=/proc/$1/task/$1/children all=(/proc/[0-9]*) pid
  below=
  { [ -e "$children" ] && read -ra all <"$children"; } 2>/dev/null
  for pid in "${all[@]##*/}"; do
    state "$pid"
    if [[ $state == [!ZX] && $parent == "$1" ]]; then below=$pid; return; fi
  done
}
within() { # so many seconds, until a command succeeds
  local until=$((SECONDS + $1)); shift
  until "$@"; do [ $SECONDS -le $until ] || return 1; pause 0.002; done
  return 0
}
stopped() { state "$launcher"; [[ $state == [TtZ] || -z $state ]]; }
# A host that lacks something is tried again with a smaller plan, and stops at the same stage again.
continued() { kill -CONT "$launcher" 2>/dev/null; state "$launcher"; [[ $state == Z || -z $state ]]; }
marked() { grep -laFf "$1" /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | sort -un; }
none_marked() { [ -z "$(marked /mnt/mark)" ]; }
shopt -s nullglob
# A /run that cannot be written is the host's, with what others have there.
here=/run/oubliette; [ -w /run ] || here=/nowhere
cells() { cells=("$here"/cells/* /var/tmp/oubliette-*/cells/* /tmp/oubliette-*/cells/*); }
# A lease is named by its number; which one is lent next stands beside them and stays.
leases() { leases=("$here"/uids/[0-9]* /var/tmp/oubliette-*/uids/[0-9]* /tmp/oubliette-*/uids/[0-9]*); }

# Another user's cell, which lives through all of it. A policy is its reader's own or root's.
cp /mnt/beside.toml beside.toml
"${run[@]}" --policy beside.toml --user bob --setenv "MARK=$BOB" -- \
  sh -c 'echo mine >~/mine; sleep 995 & echo ready; read -r line; kill -0 $! && cat ~/mine; exit 7' <go >neighbour 2>neighbours &
bob=$!
trap 'kill $bob 2>/dev/null' EXIT
within 60 grep -qs ready neighbour || fail "no neighbour"
before=$(marked /mnt/bob)
cells; theirs=("${cells[@]}")
leases; leased=("${leases[@]}")

# The shortest of three: one that a busy machine has held up would make every round wait.
whole=10000000
for round in 1 2 3; do
  start=$(now)
  "${run[@]}" --user alice -- sh -c "$agent" sh exits >out 2>errors || fail "status $?"
  took=$(($(now) - start)); ((took < whole)) && whole=$took
done

declare -A killed=([launcher]=0 [below]=0 [both]=0) names=() statuses=()
late=0 round=0
while ((killed[launcher] + killed[below] + killed[both] < KILLS)) && read -r victim moment does <&7; do
  round=$((round + 1))
  if [ "$victim" = sweep ]; then "$O" sweep >/dev/null 2>errors || fail "sweep ends with $?"; continue; fi
  stage=; [[ $moment == [a-z]* ]] && stage=$moment
  OUBLIETTE_PAUSE_AT=$stage "${run[@]}" --user alice --setenv "MARK=$MARK" -- sh -c "$agent" sh "$does" >out 2>errors &
  launcher=$!
  if [ "$stage" ]; then
    within 60 stopped || fail "it does not stop"
  else
    wait_for=$((whole * moment / 1000))
    printf -v wait_for '%d.%06d' $((wait_for / 1000000)) $((wait_for % 1000000))
    pause "$wait_for"
  fi
  cells; for cell in "${cells[@]}"; do names[${cell##*/}]=1; done
  below "$launcher"; state "$launcher"
  if [[ $state == Z || -z $state ]]; then late=$((late + 1)); wait "$launcher"; continue; fi
  # There is nothing below it yet, or no longer.
  [ "$below" ] || victim=launcher
  case $victim in
    launcher) kill -KILL "$launcher" ;;
    below) kill -KILL "$below" ;;
    both) kill -KILL "$launcher" "$below" ;;
  esac 2>/dev/null
  within 20 continued || fail "the launcher does not end"
  wait "$launcher" 2>/dev/null; status=$?
  killed[$victim]=$((killed[$victim] + 1))
  if [ "$victim" = below ]; then
    statuses[$status]=$((${statuses[$status]:-0} + 1))
    [ "$status" != 125 ] || [[ $(<errors) == 'oubliette: cannot '*$'\nhint: '* ]] || fail "it says no reason"
  fi
done 7</mnt/kills
step kills
echo "${killed[launcher]} ${killed[below]} ${killed[both]} $late $whole"
step statuses
for status in "${!statuses[@]}"; do echo "$status"; done
cells; dead=$((${#cells[@]} - ${#theirs[@]}))
step sweep
"$O" sweep >swept 2>&1; echo "status $?"; grep -v -e '^removed ' -e '^freed ' swept
step dead
echo "$dead"
step left
# A keeper whose launcher is dead has a moment, too: `sweep` leaves alone what it still holds.
settled() { cells; leases; [ "${cells[*]} ${leases[*]}" = "${theirs[*]} ${leased[*]}" ]; }
within 5 none_marked; within 5 settled; echo "processes $(marked /mnt/mark | wc -l)"
cells; [ "${cells[*]}" = "${theirs[*]}" ] || echo "cells ${cells[*]}"
leases; [ "${leases[*]}" = "${leased[*]}" ] || echo "leases ${leases[*]}"
find /tmp /run /var/tmp /dev/shm -name "*$MARK*" 2>/dev/null
find /sys/fs/cgroup -name 'oubliette-*' 2>/dev/null | while read -r group; do
  [ "${names[${group##*/oubliette-}]}" ] && [[ "${theirs[*]}" != *"${group##*/oubliette-}" ]] && echo "$group"
done
step neighbour
[ "$(marked /mnt/bob)" = "$before" ] || echo "processes $before became $(marked /mnt/bob)"
echo go >&9; wait $bob; echo "status $?"; tail -n 1 neighbour
"$O" sweep >/dev/null; cells; leases; echo "left ${cells[*]}${leases[*]}"
