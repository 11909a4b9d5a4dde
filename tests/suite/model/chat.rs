//! The bodies of the Chat Completions API, as far as an agent of its needs.

use serde_json::{Value, json};

use super::messages::{flat, list};

/// The names of the tools offered, sorted.
pub fn offered(body: &Value) -> Vec<String> {
    let names = list(&body["tools"]).iter().filter_map(|tool| tool["function"]["name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

/// Every tool result: the call's id and its text. An error is said in the text alone.
pub fn results(body: &Value) -> impl Iterator<Item = (&str, bool, String)> {
    let results = list(&body["messages"]).iter().filter(|message| message["role"] == "tool");
    results.filter_map(|message| Some((message["tool_call_id"].as_str()?, false, flat(&message["content"]))))
}

/// A text that ends the turn.
pub fn text(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// A tool call.
pub fn tool_use(id: &str, name: &str, input: &Value) -> Value {
    let function = json!({"name": name, "arguments": input.to_string()});
    json!({
        "role": "assistant", "content": null,
        "tool_calls": [{"index": 0, "id": id, "type": "function", "function": function}],
    })
}

/// A message of the assistant as a whole answer.
pub fn answer(request: &Value, message: &Value) -> Value {
    json!({
        "id": "chatcmpl_scripted", "object": "chat.completion", "created": 0, "model": request["model"], "usage": usage(),
        "choices": [{"index": 0, "message": message, "finish_reason": finish(message)}],
    })
}

/// The same message as a stream.
pub fn events(request: &Value, message: &Value) -> Vec<Value> {
    let event = |choices: Value, usage: Value| {
        json!({
            "id": "chatcmpl_scripted", "object": "chat.completion.chunk", "created": 0, "model": request["model"],
            "choices": choices, "usage": usage,
        })
    };
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    vec![
        event(choice(message.clone(), Value::Null), Value::Null),
        event(choice(json!({}), finish(message).into()), Value::Null),
        event(json!([]), usage()),
    ]
}

fn finish(message: &Value) -> &'static str {
    if message.get("tool_calls").is_some() { "tool_calls" } else { "stop" }
}

fn usage() -> Value {
    json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
}
