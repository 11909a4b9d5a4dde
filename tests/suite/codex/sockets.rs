//! The real Codex speaks with its model over a WebSocket where its file says that the upstream does.

use std::fs;
use std::io::{BufRead, BufReader, Error, Result, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use super::{codex, shell, stage};
use crate::broker::frames::{agree, read, write};
use crate::broker::upstream::{Asked, Front, Upstream};
use crate::model::{DONE, Model};
use crate::need;
use crate::real_agent::run::{LAUNCHERS, play};

/// A WebSocket in front of a model that has none: each message becomes a request with the whole conversation.
fn converse(asked: &Asked, stream: &mut TcpStream, model: SocketAddr) -> Result<()> {
    if asked.header("upgrade").is_empty() {
        stream.write_all(&crate::broker::upstream::plain("500 None", "", ""))?;
        return Err(Error::other("not a WebSocket"));
    }
    agree(asked, stream, "x-codex-turn-state: scripted\r\n")?;
    let mut conversation: Vec<Value> = Vec::new();
    loop {
        let frame = read(stream)?;
        match frame.first {
            0x81 => {}
            0x89 => write(stream, 0x8a, &frame.payload)?,
            _ => return Err(Error::other("the end")),
        }
        let mut body: Value = serde_json::from_slice(&frame.payload)?;
        assert_eq!(body["type"], "response.create", "{body}");
        let new = body["input"].as_array().cloned().unwrap_or_default();
        if body["previous_response_id"].is_null() {
            conversation.clear();
        }
        conversation.extend(new);
        body["input"] = conversation.clone().into();
        let events = match body["generate"] == false {
            true => vec![json!({"type": "response.completed", "response": {"id": "resp_first", "usage": null}})],
            false => ask(model, asked, &body)?,
        };
        for event in events {
            if event["type"] == "response.output_item.done" {
                conversation.push(event["item"].clone());
            }
            write(stream, 0x81, event.to_string().as_bytes())?;
        }
    }
}

fn ask(model: SocketAddr, asked: &Asked, body: &Value) -> Result<Vec<Value>> {
    let mut stream = TcpStream::connect(model)?;
    let (text, authorization) = (body.to_string(), asked.header("authorization").concat());
    write!(
        stream,
        "POST /v1/responses HTTP/1.1\r\nauthorization: {authorization}\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    )?;
    let mut events = Vec::new();
    for line in BufReader::new(stream).lines() {
        match line?.strip_prefix("data: ") {
            Some(event) => events.push(serde_json::from_str(event)?),
            None if events.last().is_some_and(|event: &Value| event["type"] == "response.completed") => break,
            None => {}
        }
    }
    Ok(events)
}

#[test]
fn codex_works_over_a_websocket_through_the_broker() {
    for launcher in LAUNCHERS {
        let Some(stage) = stage(launcher) else { continue };
        let model = Model::start(vec![shell("echo one >one.txt"), shell("cat one.txt")]);
        let address = model.url().trim_start_matches("http://").parse().expect("an address");
        let upstream = Upstream::start(move |asked, stream| converse(asked, stream, address));
        let front = Front::loopback(upstream.address, stage.open());
        let text = fs::read_to_string(need::root().join("policies/agents/codex.toml")).expect("an agent's file");
        let own = text.replace("https://api.openai.com/v1", &format!("{}/v1", front.url()));
        assert!(own != text && own.contains("\nwebsocket = true\n"), "its upstream is another one now");
        stage.write("policies/agents/codex.toml", &own);
        stage.give(&stage.own().join("policies"));
        let mut command = stage.oubliette();
        command.args(["run", "--level", "developer", "--timeout", "200s", "--network", "broker", "--report-fd", "2"]);
        command.arg("--policy-dir").arg(stage.own().join("policies")).arg("--ca").arg(&front.ca);
        command.arg("--credential-file").arg(stage.own().join("token"));
        codex(&mut command, &stage, "do as the script says");
        let seen = play(command, model);
        assert_eq!((seen.status, seen.stdout.trim()), (Some(0), DONE), "{launcher:?}: {}", seen.stderr);
        assert!(!seen.stderr.contains("Falling back"), "{}", seen.stderr);
        assert_eq!(seen.answers.len(), 2, "{:?}", seen.answers);
        assert!(seen.answers[1].text.contains("one"), "{:?}", seen.answers);
        let asked = upstream.asked();
        let bearer = format!("Bearer {}", stage.token);
        assert!(!asked.is_empty() && asked.iter().all(|one| one.header("authorization") == [bearer.as_str()]));
        assert!(asked.iter().all(|one| one.header("upgrade") == ["websocket"]), "{asked:?}");
        let report = seen.stderr.lines().rev().find(|line| line.starts_with('{')).expect("a report");
        let report: Value = serde_json::from_str(report).expect("a report");
        let broker = &report["broker"];
        assert_eq!((&broker["requests"], &broker["refused"]), (&asked.len().into(), &0.into()), "{broker}");
        let tokens = &broker["tokens"];
        assert_eq!((&tokens["answers"], &tokens["input"], &tokens["output"]), (&3.into(), &30.into(), &15.into()));
        assert!(broker["bytes-up"].as_u64() > Some(1000) && broker["bytes-down"].as_u64() > Some(1000), "{broker}");
    }
}
