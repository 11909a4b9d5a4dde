# Runs inside an image by its only other program: $B is busybox, $O the launcher. Every section is one check; the test
# compares. Nothing here needs a file of the image.
step() { echo "== $1"; }
left() { $B find /run/oubliette/cells /var/tmp/oubliette-*/cells /tmp/oubliette-*/cells -mindepth 1 2>/dev/null | $B wc -l; }
await() {
  tries=0
  until $B grep -qs "$2" "$1"; do
    tries=$((tries + 1)); [ $tries -lt 600 ] || { echo "waited too long"; exit 1; }; $B sleep 0.05
  done
}

step version
$O --version; echo "status $?"
step help
$O --help >/tmp/out; echo "status $?"; $B grep -c '^Usage: oubliette' /tmp/out
step levels
$O policy list >/tmp/out; echo "status $?"; $B grep -c '^level ' /tmp/out
step run
$O run -q --user alice -- $B sh -c 'echo text >file; '$B' cat file; '$B' id -u; cd; '$B' stat -c "%a %u" .; exit 7'
echo "status $?"
step credential
(umask 077; echo token-of-an-image >/tmp/token)
$O run -q --network host --credential-file /tmp/token -- $B sh -c $B' cat <&3'; echo "status $?"
step explain
$O explain -- $B true; echo "status $?"
step doctor
$O doctor >/tmp/out; echo "status $?"; $B grep -c enforce /tmp/out
step attack
$O doctor --attack --level balanced >/tmp/out 2>&1; echo "status $?"; $B tail -n 1 /tmp/out
step kill
$O run -q --user bob -- $B sh -c 'echo up; exec '$B' sleep 1000' >/tmp/up & launcher=$!
await /tmp/up up
cell=$($O ps | $B sed -n 's/ .*bob$//p')
$O kill "$cell"; echo "status $?"
wait $launcher; echo "launcher $?"
step ps
$O ps; echo "status $?"
step missing
$O run -q -- no-such-program; echo "status $?"
step sweep
$O sweep; echo "status $?"
step workspace
$O run -q --user alice --workspace user -- $B sh -c 'echo kept >>file'; echo "status $?"
$O run -q --user alice --workspace user -- $B cat file; echo "status $?"
step left
left
