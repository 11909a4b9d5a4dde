//! The programs of MCP servers, as this host has them.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::path::PathBuf;

use crate::host::Host;
use crate::host::facts::{Kind, kind};
use crate::host::program::Program;
use crate::policy::agents::mcp::Servers;
use crate::types::error::{Error, Result};

impl Servers {
    /// Adds what the servers need to the facts of the host.
    ///
    /// # Errors
    /// A program that is not found or cannot be executed.
    pub fn find(&self, host: &mut Host, search_path: &OsStr) -> Result<()> {
        for (name, server) in &self.servers {
            host.servers.push(name.clone());
            let Some(command) = &server.command else { continue };
            let found = Program::find(OsStr::new(command), search_path).map_err(|error| {
                // 126 and 127 speak of the agent.
                Error::new(format!("start MCP server {name}"), error.to_string())
                    .hint(format!("correct the `command` of {name} in the MCP file"))
            })?;
            host.programs.servers.push(found);
            let files = server.args.iter().map(PathBuf::from).filter(|path| path.is_absolute());
            // Its script, not a directory, which could be anything of the host's, nor a socket or a device.
            host.extra.extend(
                files.filter_map(|path| Some((path.clone(), kind(&path)?))).filter(|(_, kind)| *kind == Kind::File),
            );
        }
        Ok(())
    }
}
