//! The bodies of the Responses API, as far as an agent of its needs.

use serde_json::{Value, json};

use super::messages::list;

/// The names of the tools offered, sorted; those of a namespace with its name and a dot before theirs.
pub fn offered(body: &Value) -> Vec<String> {
    // Some models get theirs among the messages.
    let more = list(&body["input"]).iter().filter(|item| item["type"] == "additional_tools");
    let tools = list(&body["tools"]).iter().chain(more.flat_map(|item| list(&item["tools"])));
    let names = tools.flat_map(|tool| {
        let name = tool["name"].as_str().or(tool["type"].as_str()).unwrap_or_default();
        match list(&tool["tools"]) {
            [] => vec![name.to_owned()],
            inner => inner.iter().filter_map(|tool| Some(format!("{name}.{}", tool["name"].as_str()?))).collect(),
        }
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// How many calls and texts of the assistant's the conversation holds.
pub fn played(body: &Value) -> usize {
    let own =
        |item: &&Value| item["role"] == "assistant" || item["type"].as_str().is_some_and(|t| t.ends_with("_call"));
    list(&body["input"]).iter().filter(own).count()
}

/// Every tool result: the call's id and its text. An error is said in the text alone.
pub fn results(body: &Value) -> impl Iterator<Item = (&str, bool, String)> {
    let items =
        list(&body["input"]).iter().filter(|item| item["type"].as_str().is_some_and(|t| t.ends_with("_output")));
    items.filter_map(|item| Some((item["call_id"].as_str()?, false, super::messages::flat(&item["output"]))))
}

/// A text that ends the turn.
pub fn text(text: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": []});
    json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
}

/// A tool call: of a tool that takes plain text where the input is a text. A dot in its name is after its namespace.
pub fn tool_use(id: &str, name: &str, input: &Value) -> Value {
    let (space, name) = name.split_once('.').map_or((None, name), |(space, name)| (Some(space), name));
    let mut call = match input.as_str() {
        Some(text) => json!({"type": "custom_tool_call", "id": format!("ctc_{id}"), "input": text}),
        None => json!({"type": "function_call", "id": format!("fc_{id}"), "arguments": input.to_string()}),
    };
    call["call_id"] = id.into();
    call["name"] = name.into();
    call["status"] = "completed".into();
    if let Some(space) = space {
        call["namespace"] = space.into();
    }
    call
}

/// One item as a stream.
pub fn events(request: &Value, item: Value) -> Vec<Value> {
    let details =
        json!({"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}});
    let mut usage = json!({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15});
    usage.as_object_mut().into_iter().for_each(|usage| usage.extend(details.as_object().cloned().unwrap_or_default()));
    let response = |status: &str, output: Value, usage: Value| {
        json!({"id": "resp_scripted", "object": "response", "model": request["model"], "status": status,
            "output": output, "error": null, "usage": usage})
    };
    let mut events = vec![
        json!({"type": "response.created", "response": response("in_progress", json!([]), Value::Null)}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": item}),
    ];
    if let Some(text) = item["content"][0]["text"].as_str() {
        // Some clients read a text from its parts alone.
        events.push(json!({"type": "response.output_text.delta", "item_id": item["id"], "output_index": 0,
            "content_index": 0, "delta": text}));
    }
    events.push(json!({"type": "response.output_item.done", "output_index": 0, "item": item}));
    events.push(json!({"type": "response.completed", "response": response("completed", json!([item]), usage)}));
    events
}
