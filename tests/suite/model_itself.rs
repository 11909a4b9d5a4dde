//! The scripted model, asked by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::model::{Answer, Call, DONE, Model, Step};

const SOON: Duration = Duration::from_secs(10);

/// One connection that is kept alive.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(model: &Model) -> Client {
        let stream = TcpStream::connect(model.url().trim_start_matches("http://")).unwrap();
        Client(BufReader::new(stream))
    }

    fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    /// Status line, and the body with its length or its chunks taken off.
    fn receive(&mut self, head_only: bool) -> (String, String) {
        let status = self.line();
        let mut length = Some(0);
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("content-length", value)) => length = Some(value.parse().unwrap()),
                Some(("transfer-encoding", "chunked")) => length = None,
                Some(_) => {}
                None => break,
            }
        }
        match length {
            _ if head_only => (status, String::new()),
            Some(length) => (status, self.exactly(length)),
            None => (status, self.chunks()),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn exactly(&mut self, length: usize) -> String {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }

    fn chunks(&mut self) -> String {
        let mut body = String::new();
        loop {
            let length = usize::from_str_radix(&self.line(), 16).unwrap();
            body += &self.exactly(length);
            assert_eq!(self.line(), "");
            if length == 0 {
                return body;
            }
        }
    }

    /// Sends a conversation and gives the one block of the answer.
    fn ask(&mut self, tools: &Value, messages: &Value) -> Value {
        let body = json!({"model": "m", "tools": tools, "messages": messages}).to_string();
        let length = body.len();
        self.send(&format!(
            "POST /v1/messages?beta=true HTTP/1.1\r\nX-Api-Key: k\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        let (status, body) = self.receive(false);
        assert_eq!(status, "HTTP/1.1 200 Scripted");
        serde_json::from_str::<Value>(&body).unwrap()["content"][0].take()
    }
}

fn bash() -> Value {
    json!([{"name": "Bash"}])
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(block: &Value) -> Value {
    json!({"role": "assistant", "content": [block]})
}

fn result(call: &Value, text: &str, is_error: bool) -> Value {
    let block = json!({"type": "tool_result", "tool_use_id": call["id"], "is_error": is_error,
                       "content": [{"type": "text", "text": text}]});
    json!({"role": "user", "content": [block]})
}

#[test]
fn the_conversation_says_which_step_is_next() {
    let ls = || Call::new("Bash", json!({"command": "ls"}));
    let cat = Call::with("Read", |seen| json!({"file_path": seen[0].text}));
    let model = Model::turns(vec![vec![ls(), cat], vec![ls()]]);
    let mut client = Client::new(&model);

    let mut talk = vec![user("go")];
    let first = client.ask(&bash(), &json!(talk));
    assert_eq!((&first["name"], &first["input"]), (&json!("Bash"), &json!({"command": "ls"})));
    let again = client.ask(&bash(), &json!(talk));
    assert_eq!(again["input"], first["input"], "a retry gets the same call");

    talk.extend([assistant(&first), result(&first, "a.txt", false)]);
    let second = client.ask(&bash(), &json!(talk));
    assert_eq!(second["input"], json!({"file_path": "a.txt"}), "made from the first answer");

    talk.extend([assistant(&second), result(&second, "denied", true)]);
    let end = client.ask(&bash(), &json!(talk));
    assert_eq!(end, json!({"type": "text", "text": DONE}));

    talk.extend([assistant(&end), user("more")]);
    let third = client.ask(&bash(), &json!(talk));
    assert_eq!(third["input"], json!({"command": "ls"}), "the second turn");

    talk.extend([assistant(&third), result(&third, "", false)]);
    assert_eq!(client.ask(&bash(), &json!(talk))["text"], DONE);

    let answer = |name: &str, input, offered, is_error, text: &str| Answer {
        name: name.to_owned(),
        input,
        offered,
        is_error,
        text: text.to_owned(),
    };
    assert_eq!(
        model.finish(),
        [
            answer("Bash", json!({"command": "ls"}), true, false, "a.txt"),
            answer("Read", json!({"file_path": "a.txt"}), false, true, "denied"),
            answer("Bash", json!({"command": "ls"}), true, false, ""),
        ]
    );
}

#[test]
fn requests_on_the_side_play_no_step() {
    let model = Model::start(vec![Call::new("Agent", json!({"prompt": "look around"}))]);
    let mut client = Client::new(&model);
    assert_eq!(client.ask(&json!([]), &json!([user("a title")]))["text"], "ok");
    let call = client.ask(&bash(), &json!([user("go")]));
    assert_eq!(call["name"], "Agent");
    let subagent = client.ask(&bash(), &json!([user("look around")]));
    assert_eq!(subagent["text"], DONE, "a subagent is no part of the script");
    assert!(model.wait_for_requests(2, SOON));
    assert!(model.requests().iter().all(|request| request.x_api_key.as_deref() == Some("k")));
    assert!(model.finish().is_empty(), "nothing was answered");
}

#[test]
fn a_side_request_for_json_gets_json_of_that_form() {
    let model = Model::start(Vec::new());
    let mut client = Client::new(&model);
    let schema = json!({"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}});
    let body = json!({"messages": [user("x")], "output_config": {"format": {"schema": schema}}}).to_string();
    client.send(&format!("POST /v1/messages HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    let answer: Value = serde_json::from_str(&client.receive(false).1).unwrap();
    assert_eq!(answer["content"][0]["text"], r#"{"title":"ok"}"#);
}

#[test]
fn a_stream_carries_the_call_as_events() {
    let model = Model::start(vec![Call::new("Bash", json!({"command": "id"}))]);
    let mut client = Client::new(&model);
    client.send("HEAD /api/hello HTTP/1.1\r\n\r\n");
    assert_eq!(client.receive(true), ("HTTP/1.1 200 Scripted".to_owned(), String::new()));

    let body = json!({"stream": true, "tools": bash(), "messages": [user("go")]}).to_string();
    let (head, tail) = body.split_at(7);
    client.send("POST /v1/messages HTTP/1.1\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer t\r\n\r\n");
    client.send(&format!("7\r\n{head}\r\n{:x}\r\n{tail}\r\n0\r\n\r\n", tail.len()));
    let (_, stream) = client.receive(false);

    let kinds: Vec<_> = stream.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let block = ["content_block_start", "content_block_delta", "content_block_stop"];
    assert_eq!(kinds, [&["message_start"][..], &block, &["message_delta", "message_stop"]].concat());
    assert!(stream.contains(r#""partial_json":"{\"command\":\"id\"}""#), "{stream}");
    assert_eq!(model.requests()[1].authorization.as_deref(), Some("Bearer t"));
}

#[test]
fn errors_and_unknown_paths_have_their_status() {
    let model = Model::play(vec![Step::Fail(529)]);
    let mut client = Client::new(&model);
    let body = json!({"tools": bash(), "messages": [user("go")]}).to_string();
    client.send(&format!("POST /v1/messages HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.receive(false).0, "HTTP/1.1 529 Scripted");
    client.send("GET /v1/models HTTP/1.1\r\n\r\n");
    assert_eq!(client.receive(false).0, "HTTP/1.1 404 Scripted");
    client.send("POST /v1/messages/count_tokens HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}");
    assert_eq!(client.receive(false).1, r#"{"input_tokens":10}"#);
}

#[test]
fn a_held_agent_is_let_go_by_release_and_by_the_end() {
    let model = Model::play(vec![Step::Hold, Call::new("Bash", json!({})).into()]);
    let held = |mut client: Client| std::thread::spawn(move || client.ask(&bash(), &json!([user("go")])));
    let waiting = held(Client::new(&model));
    assert!(model.wait_for_requests(1, SOON));
    assert!(!waiting.is_finished());
    model.release();
    assert_eq!(waiting.join().unwrap()["text"], DONE);
    assert!(!model.wait_for_answers(1, Duration::ZERO), "nothing was called");

    let model = Model::play(vec![Step::Hold]);
    let mut client = Client::new(&model);
    let body = json!({"tools": bash(), "messages": [user("go")]}).to_string();
    client.send(&format!("POST /v1/messages HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert!(model.wait_for_requests(1, SOON));
    assert!(model.finish().is_empty(), "and finish comes back");
}
