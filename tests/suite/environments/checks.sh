# Runs inside an environment: root or a plain user, from /mnt, with nothing but a scratch directory $S of its own. Every
# section of what it prints is one check; the test compares. Nothing here asks for the exit status of a pipe.
O=/mnt/oubliette
mkdir "$S" && cd "$S" || exit 1
step() { echo "== $1"; }
# Waits until a file has a text, for half a minute and no longer: a launcher that has failed never writes it.
await() {
  tries=0
  until grep -qs "$2" "$1"; do
    tries=$((tries + 1)); [ $tries -lt 600 ] || { echo "waited too long"; exit 1; }; sleep 0.05
  done
}
# Processes whose arguments have the text. The pattern does not match itself.
running() { grep -la "$1" /proc/[0-9]*/cmdline 2>/dev/null | wc -l; }
left() { find /run/oubliette/cells /var/tmp/oubliette-*/cells /tmp/oubliette-*/cells -mindepth 1 2>/dev/null | wc -l; }

step id
id -u
step run
$O run -q --user alice -- sh -c 'id -u; echo text > file; cat file; find "$HOME" -maxdepth 0 -printf "%m %U\n"; pwd; exit 7'
echo "status $?"
step posture
$O run -q -- sh -c 'grep -e ^CapEff: -e ^CapPrm: -e ^Seccomp: /proc/self/status'
step network
$O run -q --network none -- sh -c 'echo ran'
echo "status $?"
step statuses
$O run -q --timeout 1s -- sleep 60 2>error; echo "deadline $?"
$O run -q -- sh -c 'kill -9 $$'; echo "signal $?"
$O run -q -- no-such-command 2>error; echo "missing $?"
$O run -q -- /etc/passwd 2>error; echo "not executable $?"
step disk
$O policy show developer | sed 's/^disk = .*/disk = "4MiB"/' >small.toml
$O run -q --policy small.toml -- sh -c 'head -c 12M /dev/zero >"$HOME/big" 2>/dev/null || exit 9; sleep 60' 2>error
echo "status $?"
step term
mkfifo never
$O run -q -- sh -c 'trap "echo heard; exit 9" TERM; echo up; while :; do sleep 0.1; done' >out & launcher=$!
await out up; kill -TERM $launcher; wait $launcher; echo "status $?"; cat out
step orphans
$O run -q -- sh -c "sleep 1$MARK & setsid env -i /bin/sleep 2$MARK & exit 3"; echo "status $?"
echo "alive $(running "sleep.[12]$MARK")"
step credential
TOKEN=$(cat /mnt/token); (umask 077; cat /mnt/token >token)
$O run -q --credential-file token --network host -- sh -c 'cat <&3' >out; echo "status $?"
[ "$(cat out)" = "$TOKEN" ] && echo "handed over"
step neighbours
mkfifo go; exec 5<>go
$O run -q --user alice --credential-file token --network host -- sh -c 'umask 0; echo private >"$HOME/file"; echo "up $HOME"; read -r line; cat "$HOME/file"' <go >victim & launcher=$!
await victim up
home=$(sed -n 's/^up //p' victim)
cells=$(echo /run/oubliette/cells/*/home /var/tmp/oubliette-*/cells/*/home /tmp/oubliette-*/cells/*/home)
# To know his neighbour's paths is more than a hostile user does.
$O run -q --user bob -- sh -c '
  for home in "$@"; do
    [ "$home" = "$HOME" ] && continue
    [ -e "$home/file" ] && echo "sees the file"; grep -qs private "$home/file" && echo "reads the file"
    echo x 2>/dev/null >"$home/file" && echo "writes the file"
  done
  kill -9 -1 2>/dev/null
  exit 0' sh $cells | sort -u
echo go >&5; wait $launcher; echo "status $?"; tail -n 1 victim
step secret
: >victim # the last one's is still up
$O run -q --user alice --credential-file token --network host -- sh -c 'echo up; read -r line' <go >victim & launcher=$!
await victim up
$O run -q --user bob -- sh -c '
  for process in /proc/[0-9]*; do
    [ "$process" = "/proc/self" ] && continue
    cat "$process/environ" "$process/cmdline"
    for file in "$process"/fd/*; do [ -p "$file" ] || [ -f "$file" ] && timeout 1 head -c 4096 "$file"; done
  done 2>/dev/null' >seen 2>/dev/null
echo "seen by a neighbour $(grep -ac "$TOKEN" seen)"
cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline >seen 2>/dev/null
echo "in arguments and environments $(grep -ac "$TOKEN" seen)"
echo go >&5; wait $launcher; echo "status $?"
exec 5>&-
step killed
$O run -q --credential-file token --network host -- sh -c "umask 077; mkdir -p ~/a/b; echo x >~/a/b/c; chmod 0 ~/a/b ~/a; setsid sleep 3$MARK & echo up; exec sleep 4$MARK" >out & launcher=$!
await out up; kill -9 $launcher; wait $launcher 2>/dev/null
$O sweep >/dev/null; echo "status $?"
# In a PID namespace the kernel ends them, in its own time; sweep sees none of them.
tries=0; until [ "$(running "sleep.[34]$MARK")" = 0 ] || [ $tries -ge 100 ]; do tries=$((tries + 1)); sleep 0.05; done
echo "alive $(running "sleep.[34]$MARK") left $(left)"
step outputs
mkdir in; echo one >in/a
$O run -q --copy-in in --export out.d --patch out.patch -- sh -c 'echo two >>a; echo new >b'; echo "status $?"
cat out.d/a out.d/b; grep -e '^+' -e '^---' out.patch
step hostile
$O run -q -- sh -c '
  newline="
"
  for dir in . "$HOME" "$TMPDIR"; do
    cd "$dir"
    : >"two${newline}lines"; : >-rf; : >"$(printf "\377")"; mkfifo fifo; ln fifo fifo2; ln -s / root; ln -s loop loop
    mkdir ro; : >ro/file; chmod 500 ro
    mkdir -p closed/er/still; : >closed/er/still/file; chmod 0 closed/er/still closed/er closed
    mkdir many; i=0; while [ $i -lt 3000 ]; do : >many/$i; i=$((i + 1)); done; chmod 0 many
    i=0; while [ $i -lt 300 ]; do mkdir x; cd x; i=$((i + 1)); done; : >deep
  done
  exit 0'; echo "status $?"; echo "left $(left)"
step all
$O run -q --require all -- true; echo "status $?"
step left
echo "$(left)"
step explain
# The agent of `doctor --attack` is one that has a broker.
$O explain --agent doctor --upstream http://127.0.0.1:9 --credential-file token -- true
echo "status $?"
