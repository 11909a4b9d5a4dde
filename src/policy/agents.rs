//! What each agent is told, and how it takes its credential.
#![forbid(unsafe_code)]

pub mod claude;
pub mod codex;
pub mod denied;
pub mod endpoint;
pub mod gemini;
pub mod login;
pub mod mcp;
pub mod opencode;
pub mod qwen;
pub mod rendered;
pub mod spec;
pub mod way;
