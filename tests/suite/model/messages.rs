//! The bodies of the Messages API: what the scripted model reads in a request, and what it says.

use serde_json::{Map, Value, json};

/// The names of the tools offered, sorted.
pub fn offered(body: &Value) -> Vec<String> {
    let mut names: Vec<String> =
        list(&body["tools"]).iter().filter_map(|tool| tool["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    names
}

/// How many messages of the assistant the conversation holds.
pub fn played(body: &Value) -> usize {
    list(&body["messages"]).iter().filter(|message| message["role"] == "assistant").count()
}

/// The texts of the message that the conversation begins with.
pub fn first_texts(body: &Value) -> impl Iterator<Item = &str> {
    let content = &body["messages"][0]["content"];
    content.as_str().into_iter().chain(list(content).iter().filter_map(|block| block["text"].as_str()))
}

/// Every tool result: the call's id, whether it is an error, its text.
pub fn results(body: &Value) -> impl Iterator<Item = (&str, bool, String)> {
    let blocks = list(&body["messages"]).iter().flat_map(|message| list(&message["content"]));
    blocks.filter(|block| block["type"] == "tool_result").filter_map(|block| {
        let id = block["tool_use_id"].as_str()?;
        Some((id, block["is_error"] == true, flat(&block["content"])))
    })
}

/// What satisfies a request on the side: a text, or the smallest value of the form that it asks for.
pub fn side_answer(body: &Value) -> String {
    match body["output_config"]["format"].get("schema") {
        Some(schema) => fitting(schema).to_string(),
        None => "ok".to_owned(),
    }
}

/// A text that ends the turn.
pub fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// A tool call.
pub fn tool_use(id: &str, name: &str, input: &Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

/// An error's body.
pub fn error(kind: &str, text: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": text}})
}

/// A whole message of one block.
pub fn message(request: &Value, block: Value) -> Value {
    let stop = if block["type"] == "tool_use" { "tool_use" } else { "end_turn" };
    // Its place in the conversation is all that tells two messages of one script apart.
    let id = format!("msg_scripted{:04}", list(&request["messages"]).len());
    json!({
        "id": id, "type": "message", "role": "assistant", "model": request["model"], "content": [block],
        "stop_reason": stop, "stop_sequence": null, "usage": usage(),
    })
}

/// The same message as a stream.
pub fn events(message: &Value) -> Vec<Value> {
    let block = &message["content"][0];
    let (empty, delta) = match block["type"].as_str() {
        Some("tool_use") => (
            tool_use(block["id"].as_str().unwrap_or_default(), block["name"].as_str().unwrap_or_default(), &json!({})),
            json!({"type": "input_json_delta", "partial_json": block["input"].to_string()}),
        ),
        _ => (text(""), json!({"type": "text_delta", "text": block["text"]})),
    };
    let mut start = message.clone();
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    let stop = json!({"stop_reason": message["stop_reason"], "stop_sequence": null});
    vec![
        json!({"type": "message_start", "message": start}),
        json!({"type": "content_block_start", "index": 0, "content_block": empty}),
        json!({"type": "content_block_delta", "index": 0, "delta": delta}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": stop, "usage": usage()}),
        json!({"type": "message_stop"}),
    ]
}

fn usage() -> Value {
    json!({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0})
}

/// The smallest value that fits a JSON schema, as far as agents' side requests go.
fn fitting(schema: &Value) -> Value {
    if let Some(first) = list(&schema["enum"]).first() {
        return first.clone();
    }
    match schema["type"].as_str().unwrap_or("string") {
        "object" => {
            let names = list(&schema["required"]).iter().filter_map(Value::as_str);
            Value::Object(
                names.map(|name| (name.to_owned(), fitting(&schema["properties"][name]))).collect::<Map<_, _>>(),
            )
        }
        "array" => json!([]),
        "boolean" => json!(false),
        "integer" | "number" => json!(1),
        _ => json!("ok"),
    }
}

/// The text of a content: a string, or the texts of its blocks, one a line.
pub fn flat(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// The elements of an array; none where there is no array.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
