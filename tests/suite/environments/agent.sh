# Another user's cell, which lives on, and for each line of standard input, LEVEL URL TURNS, a run that the model at this
# address leads: of the agent, or of a shell that starts the agent for each turn, with the network NETWORK. An answer is a
# list of sections.
O=/mnt/oubliette
mkdir "$S" && cd "$S" || exit 1
# In a user namespace without a root of its own, what is root's seems to be nobody's, and is not taken.
(umask 077; cat /mnt/token >token; cat /mnt/servers.json >servers.json)
cat /mnt/server.py >server.py
mkfifo go; exec 5<>go
cells() { for cell in /run/oubliette/cells/* /var/tmp/oubliette-*/cells/* /tmp/oubliette-*/cells/*; do [ -d "$cell" ] && echo "$cell"; done; }
read -r LAUNCHER MARK
echo "== neighbour"
if [ -n "$MARK" ]; then
  $O run -q --user bob --setenv "MARK=$MARK" -- sh -c '
    echo $0 >~/secret; echo $0 >secret; echo $0 >"$TMPDIR/secret"; echo up; read -r line' "$MARK" <go >up 5>&- & neighbour=$!
  tries=0
  until grep -qs up up; do tries=$((tries + 1)); [ $tries -lt 600 ] || exit 1; sleep 0.05; done
  echo "$neighbour"; cells
fi
echo "== end"
PATH=${CLAUDE%/*}:$PATH
while read -r level url turns; do
  set -- "$CLAUDE" -p 'do as the script says'
  [ -z "$turns" ] || set -- sh -c "$turns"
  LAUNCHER_ONLY=$LAUNCHER $O run -q --user alice@example.org --level "$level" --timeout 200s \
    --network "$NETWORK" --upstream "$url" \
    --credential-file token --mcp-config servers.json --export "out-$level" \
    --agent claude -- "$@" >said 2>complaints </dev/null 5>&-
  status=$?
  echo "== status"; echo $status
  echo "== said"; cat said
  echo "== complaints"; cat complaints
  echo "== written"; cat "out-$level/main.py" 2>/dev/null
  echo "== settings"; ls -d "out-$level/.claude" "out-$level/.mcp.json" 2>/dev/null
  rm -rf "out-$level"
  echo "== end"
done
echo >&5; wait
echo "== left"; cells
exit 0
