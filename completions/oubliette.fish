# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_oubliette_global_optspecs
    string join \n h/help V/version
end

function __fish_oubliette_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_oubliette_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_oubliette_using_subcommand
    set -l cmd (__fish_oubliette_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c oubliette -n "__fish_oubliette_needs_command" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_needs_command" -s V -l version -d 'Print version'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "run" -d 'Run an agent in a fresh cell and wipe it afterwards'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "explain" -d 'Say what `run` with the same arguments would do, layer by layer, and why'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "doctor" -d 'Say what this host offers, for every level'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "sweep" -d 'Kill and wipe what dead runs left; never touches a live cell'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "ps" -d 'List the live cells'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "kill" -d 'End a live cell: TERM, then KILL after the grace period'
complete -c oubliette -n "__fish_oubliette_needs_command" -f -a "policy" -d 'List, show and check policies'
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -s u -l user -d 'Whose run this is: any text (a mail address, a UUID, …); never used as a path' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l credential-file -d 'Read the agent\'s credential from this file (mode 0600 or stricter, not a link)' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l credential-fd -d 'Read the credential from this open descriptor' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l credential-env -d 'Read the credential from this variable, whose memory is then overwritten' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l login-file -d 'Take the token of the moment from the file that the agent\'s own login wrote, such as ~/.claude/.credentials.json; what renews it stays outside' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l policy -d 'Take the policy from this file instead of a named level' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l network -d 'The network that the agent sees' -r -f -a "host\t'The host\'s network'
none\t'A namespace with nothing but its own loopback'
broker\t'The same, and on that loopback a broker: it holds the credential, and leads to the model\'s API and the listed hosts'"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l allow -d 'With --network broker: let the agent reach this host, too (repeatable; `*.HOST` for all below it), where the policy has `allow-more`; OUBLIETTE_ALLOW adds to it, with commas' -r -f -a "(__fish_print_hostnames)"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l mcp-config -d 'MCP servers for the agent: a file with an `mcpServers` object' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l endpoint -d 'Speak with another API that serves the agent\'s model, by a name of the agent\'s file: `bedrock`, `vertex`' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l upstream -d 'Base URL of the agent\'s model API' -r -f
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l ca -d 'With --network broker: trust the certificate authorities of this PEM file instead of the host\'s' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l inject -d 'With --network broker: add this header, with the value from FILE, to the agent\'s requests to HOST; the cell never has it (repeatable). HOST is one that the policy has or lets the caller add; FILE as with --credential-file' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l client-cert -d 'With --network broker: show the upstream the certificate of this PEM file, which also holds its key (mode 0600)' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l setenv -d 'One more variable for the agent (repeatable); refused for names that steer the loader, the agent or its credential' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -s w -l workspace -d 'The agent\'s working directory: `fresh` (wiped), `user` (kept, one per user), or a directory of yours' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l copy-in -d 'Fill a fresh workspace with a copy of this directory' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l export -d 'After the run put the workspace into this new directory, or as a tar archive into FILE.tar or `-`' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l patch -d 'After the run write what the agent changed as a patch in git\'s format' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l timeout -d 'End the run after this time (`90s`, `30m`, `1h`) with status 124' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l grace -d 'Time between TERM and KILL at the deadline' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l wait -d 'Where only one cell may live at a time, wait this long for another one instead of refusing to run' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l report-fd -d 'Write one JSON object about the run to this open descriptor' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l state-dir -d 'Where cells live while they run' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l uid-range -d 'UIDs that root lends to runs, `FIRST-LAST`; where nobody names them, those of `oubliette` in /etc/subuid' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l policy-dir -d 'A directory of levels (NAME.toml) and agents (agents/NAME.toml) that come before the compiled-in ones' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l require -d 'Refuse to run without this layer (repeatable; `all` for every one); OUBLIETTE_REQUIRE adds to it, with commas' -r -f -a "all\t''
pid\t''
root\t''
ipc\t''
uts\t''
net\t''
uid\t''
landlock-fs\t''
landlock-net\t''
landlock-scope\t''
path-sockets\t''
seccomp\t''
capabilities\t''
no-new-privs\t''
limits\t''
cgroup\t''
settings\t''
alone\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -s l -l level -d 'How much the agent may do: paranoid, balanced, developer, or a level of your own' -r -f -a "paranoid\t''
balanced\t''
developer\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -s a -l agent -d 'Which agent the command is (default: guessed from its name); `none` for any program' -r -f -a "claude\t''
codex\t''
gemini\t''
kimi\t''
kiro\t''
none\t''
opencode\t''
qwen\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l credential-stdin -d 'Read the credential from standard input; the agent then gets an empty one'
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l resume -d 'With --workspace user: put back what the agent resumes a conversation from, as its last run left that, and keep it for the next'
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l copy-in-skip -d 'Pass over what cannot be copied in (unreadable files, other file systems) and name it, instead of refusing the run'
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -l beside -d 'Start beside other cells even where nothing separates them and only one should live at a time'
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -s q -l quiet -d 'No progress and no notes on standard error, only errors'
complete -c oubliette -n "__fish_oubliette_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -s u -l user -d 'Whose run this is: any text (a mail address, a UUID, …); never used as a path' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l credential-file -d 'Read the agent\'s credential from this file (mode 0600 or stricter, not a link)' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l credential-fd -d 'Read the credential from this open descriptor' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l credential-env -d 'Read the credential from this variable, whose memory is then overwritten' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l login-file -d 'Take the token of the moment from the file that the agent\'s own login wrote, such as ~/.claude/.credentials.json; what renews it stays outside' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l policy -d 'Take the policy from this file instead of a named level' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l network -d 'The network that the agent sees' -r -f -a "host\t'The host\'s network'
none\t'A namespace with nothing but its own loopback'
broker\t'The same, and on that loopback a broker: it holds the credential, and leads to the model\'s API and the listed hosts'"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l allow -d 'With --network broker: let the agent reach this host, too (repeatable; `*.HOST` for all below it), where the policy has `allow-more`; OUBLIETTE_ALLOW adds to it, with commas' -r -f -a "(__fish_print_hostnames)"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l mcp-config -d 'MCP servers for the agent: a file with an `mcpServers` object' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l endpoint -d 'Speak with another API that serves the agent\'s model, by a name of the agent\'s file: `bedrock`, `vertex`' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l upstream -d 'Base URL of the agent\'s model API' -r -f
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l ca -d 'With --network broker: trust the certificate authorities of this PEM file instead of the host\'s' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l inject -d 'With --network broker: add this header, with the value from FILE, to the agent\'s requests to HOST; the cell never has it (repeatable). HOST is one that the policy has or lets the caller add; FILE as with --credential-file' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l client-cert -d 'With --network broker: show the upstream the certificate of this PEM file, which also holds its key (mode 0600)' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l setenv -d 'One more variable for the agent (repeatable); refused for names that steer the loader, the agent or its credential' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -s w -l workspace -d 'The agent\'s working directory: `fresh` (wiped), `user` (kept, one per user), or a directory of yours' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l copy-in -d 'Fill a fresh workspace with a copy of this directory' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l export -d 'After the run put the workspace into this new directory, or as a tar archive into FILE.tar or `-`' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l patch -d 'After the run write what the agent changed as a patch in git\'s format' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l timeout -d 'End the run after this time (`90s`, `30m`, `1h`) with status 124' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l grace -d 'Time between TERM and KILL at the deadline' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l wait -d 'Where only one cell may live at a time, wait this long for another one instead of refusing to run' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l report-fd -d 'Write one JSON object about the run to this open descriptor' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l state-dir -d 'Where cells live while they run' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l uid-range -d 'UIDs that root lends to runs, `FIRST-LAST`; where nobody names them, those of `oubliette` in /etc/subuid' -r
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l policy-dir -d 'A directory of levels (NAME.toml) and agents (agents/NAME.toml) that come before the compiled-in ones' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l require -d 'Refuse to run without this layer (repeatable; `all` for every one); OUBLIETTE_REQUIRE adds to it, with commas' -r -f -a "all\t''
pid\t''
root\t''
ipc\t''
uts\t''
net\t''
uid\t''
landlock-fs\t''
landlock-net\t''
landlock-scope\t''
path-sockets\t''
seccomp\t''
capabilities\t''
no-new-privs\t''
limits\t''
cgroup\t''
settings\t''
alone\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -s l -l level -d 'How much the agent may do: paranoid, balanced, developer, or a level of your own' -r -f -a "paranoid\t''
balanced\t''
developer\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -s a -l agent -d 'Which agent the command is (default: guessed from its name); `none` for any program' -r -f -a "claude\t''
codex\t''
gemini\t''
kimi\t''
kiro\t''
none\t''
opencode\t''
qwen\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l json -d 'Machine-readable output'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l credential-stdin -d 'Read the credential from standard input; the agent then gets an empty one'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l resume -d 'With --workspace user: put back what the agent resumes a conversation from, as its last run left that, and keep it for the next'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l copy-in-skip -d 'Pass over what cannot be copied in (unreadable files, other file systems) and name it, instead of refusing the run'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -l beside -d 'Start beside other cells even where nothing separates them and only one should live at a time'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -s q -l quiet -d 'No progress and no notes on standard error, only errors'
complete -c oubliette -n "__fish_oubliette_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -l policy -d 'Attack cells with the policy of this file' -r -F
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -l network -d 'The network of the attacked cells (default: the level\'s)' -r -f -a "host\t'The host\'s network'
none\t'A namespace with nothing but its own loopback'
broker\t'The same, and on that loopback a broker: it holds the credential, and leads to the model\'s API and the listed hosts'"
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -l state-dir -d 'Where cells live while they run' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -s l -l level -d 'Attack cells of this level only (default: of every level)' -r -f -a "paranoid\t''
balanced\t''
developer\t''"
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -l attack -d 'Start two cells and let a hostile agent in the one attack the other'
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -l json -d 'Machine-readable output'
complete -c oubliette -n "__fish_oubliette_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c oubliette -n "__fish_oubliette_using_subcommand sweep" -l state-dir -d 'Where cells live while they run' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand sweep" -l dry-run -d 'Say what would be removed and remove nothing'
complete -c oubliette -n "__fish_oubliette_using_subcommand sweep" -l json -d 'Machine-readable output'
complete -c oubliette -n "__fish_oubliette_using_subcommand sweep" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_using_subcommand ps" -l state-dir -d 'Where cells live while they run' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand ps" -l json -d 'Machine-readable output'
complete -c oubliette -n "__fish_oubliette_using_subcommand ps" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_using_subcommand kill" -l state-dir -d 'Where cells live while they run' -r -f -a "(__fish_complete_directories)"
complete -c oubliette -n "__fish_oubliette_using_subcommand kill" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and not __fish_seen_subcommand_from list show check" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and not __fish_seen_subcommand_from list show check" -f -a "list" -d 'Name the levels and agents, where each comes from, what an agent\'s settings can say and which of its versions was tested'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and not __fish_seen_subcommand_from list show check" -f -a "show" -d 'Print a level\'s policy or an agent\'s file'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and not __fish_seen_subcommand_from list show check" -f -a "check" -d 'Check a policy file'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and __fish_seen_subcommand_from list" -l json -d 'As JSON'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c oubliette -n "__fish_oubliette_using_subcommand policy; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
