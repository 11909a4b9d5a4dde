# Control groups of the unified hierarchy: what bounds a cell, and that nothing is left of it.
O=/mnt/oubliette
mkdir "$S" && cd "$S" || exit 1
step() { echo "== $1"; }
groups() { find /sys/fs/cgroup -name 'oubliette-*'; }
mkfifo go; exec 5<>go

step bounds
$O run -q --policy /mnt/small.toml -- sh -c 'echo up; read -r line; cat /proc/self/cgroup; ls -A /sys' <go >out & launcher=$!
tries=0
until grep -qs up out; do tries=$((tries + 1)); [ $tries -lt 600 ] || exit 1; sleep 0.05; done
group=$(groups)
cat "$group/memory.max" "$group/pids.max" "$group/cpu.max" "$group/memory.swap.max" "$group/memory.oom.group"
wc -l <"$group/cgroup.procs"
echo go >&5; wait $launcher; echo "status $?"
sed 1d out
step memory
$O run -q --report-fd 9 --policy /mnt/small.toml -- sh -c 'head -c 200M /dev/zero | tail; echo survived' 9>report
echo "status $?"; grep -o '"peak-cell":[0-9]*' report
step processes
$O run -q --policy /mnt/small.toml -- sh -c 'i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i + 1)); done; echo all' 2>&1 |
  sed 's/.*: //' | sort -u
step killed
$O run -q --policy /mnt/small.toml -- sh -c 'echo up; exec sleep 600' >out & launcher=$!
tries=0
until grep -qs up out; do tries=$((tries + 1)); [ $tries -lt 600 ] || exit 1; sleep 0.05; done
echo "groups $(groups | wc -l)"
kill -9 $launcher; wait $launcher 2>/dev/null
$O sweep >/dev/null; echo "status $?"
step left
groups
