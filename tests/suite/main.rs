//! The test suite: one binary, so that it links once. One module per subject.
#![deny(unsafe_code)]

// What the tests stand on.
mod brokered; // real agents through the real broker, and where their credential is then
mod launch; // a lab with a state directory, and a shell line that launches in it as root or as a plain user
mod model; // a model that plays a fixed list of tool calls to a real agent, without a network
mod need; // what a test needs from its host, and what happens when that is not there
mod place; // a place whose launchers can be stopped, killed and looked at from outside
mod stage; // launches that go on while the test looks at them

// The repository itself.
mod generated; // man page and completions equal what the command line's definition says
mod house; // every import goes downwards
mod readme; // what the pages promise is in the repository
mod shape; // function length, where unsafe is, words and file names

// The tests' own instruments.
mod attack; // a victim and a hostile neighbour without any cell: the suite must find every hole there is
mod model_itself; // the scripted model says what the Messages API says
mod posture; // what `__posture` says about a process whose posture is known

// What is asked for, and what is planned.
mod bad_input; // every wrong word, file and host gives one message, a hint, a status, and leaves nothing
mod deploy; // the examples of deployments are well formed and name what exists
mod disk; // limits of disk and files where no tmpfs holds them
mod plans; // the plan as a table: facts, levels and agents on one side, decisions on the other
mod policies; // where policies come from, and what is wrong with them
mod properties; // what holds for every plan, tried with all combinations of facts
mod uid_ranges; // from where the UIDs of runs come, and when they are somebody else's

// Cells.
mod alone; // where nothing is between cells of one UID, one lives at a time
mod broker; // what holds the credential outside of the cell: what passes it, what does not, and how a run ends without it
mod callers; // what a caller hands on through exec, and what becomes of it
mod cell_posture; // what an agent is equals what the plan promised
mod cells; // ps, kill, deadlines, signals, statuses and reports
mod codex; // the real Codex at every level, through a broker
mod cost; // a slow probe of the host fails
mod counts; // what one cell takes of what is counted for all, and what its neighbour gets
mod environments; // the same in containers and under gVisor: what each must enforce, and what it leaves
mod gemini; // the real Gemini CLI at every level, through a broker
mod gvisor; // the same in a real gVisor sandbox, as root and as a plain user
mod images; // the program in an empty root, and in images like distroless and Alpine; nothing of the host's C library
mod kimi; // the real Kimi Code at every level, through a broker
mod lent; // a UID that is lent again finds nothing of the last run, and who ends its processes is not ended by them
mod login; // the file of an agent's own login: its token is brokered, and what renews that is nowhere
mod many; // 32 cells at once for a minute
mod opencode; // the real opencode at every level, through a broker
mod qwen; // the real Qwen Code at every level, through a broker
mod real_agent; // the real Claude Code at every level, driven by the scripted model
mod resume; // what real agents go on with in another run of the same user
mod secret; // the credential is found nowhere, however a run ends and wherever it is stopped
mod shared_uid; // Landlock alone between cells of one UID: sockets with a path, modes and times
mod siege; // `doctor --attack`: what the plan promises about every attack against what the kernel does
mod terminal; // keys, signals, sizes and modes between a person's shell and a cell
mod two_users; // A's agent is the victim, B's tries everything, tier by tier

// What is left.
mod crash; // `kill -9` at every stage, of launcher, init and both; sweep on what that leaves and on planted state
mod devices; // where a file has another device than its directory: nothing is lost in or out
mod outputs; // what goes out of a cell costs nobody a file, and has no name before it is whole
mod skipped; // whatever is not copied in or out is named and counted
mod tree; // wipe, copy, export and patch on hostile trees
mod wiping; // the same by the real program: hostile agents, zeroed files, outputs, kept workspaces
