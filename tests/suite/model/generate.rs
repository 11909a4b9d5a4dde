//! The bodies of the Gemini API, as far as an agent of its needs.

use serde_json::{Map, Value, json};

use super::messages::list;

/// The names of the tools offered, sorted.
pub fn offered(body: &Value) -> Vec<String> {
    let declared = list(&body["tools"]).iter().flat_map(|tool| list(&tool["functionDeclarations"]));
    let mut names: Vec<String> = declared.filter_map(|tool| tool["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    names
}

/// How many messages of the model's the conversation holds.
pub fn played(body: &Value) -> usize {
    list(&body["contents"]).iter().filter(|content| content["role"] == "model").count()
}

/// Every tool result: the call's id, whether it is an error, its text. What a tool answers has the key `output`.
pub fn results(body: &Value) -> impl Iterator<Item = (&str, bool, String)> {
    let parts = list(&body["contents"]).iter().flat_map(|content| list(&content["parts"]));
    parts.filter_map(|part| {
        let answer = part.get("functionResponse")?;
        let response = &answer["response"];
        let error = response.get("error");
        let text = error.or(response.get("output")).and_then(Value::as_str).unwrap_or_default();
        Some((answer["id"].as_str()?, error.is_some(), text.to_owned()))
    })
}

/// What satisfies a request on the side: a text, or the smallest value of the form that it asks for.
pub fn side_answer(body: &Value) -> String {
    match body["generationConfig"].get("responseJsonSchema") {
        Some(schema) => fitting(schema).to_string(),
        None => "ok".to_owned(),
    }
}

/// A text that ends the turn.
pub fn text(text: &str) -> Value {
    json!({ "text": text })
}

/// A tool call.
pub fn tool_use(id: &str, name: &str, input: &Value) -> Value {
    json!({"functionCall": {"id": id, "name": name, "args": input}})
}

/// A whole answer of one part. A stream has one event, which is this.
pub fn answer(part: &Value) -> Value {
    json!({
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15},
        "modelVersion": "scripted",
    })
}

/// What those who have logged in may use.
pub fn tier() -> Value {
    json!({"currentTier": {"id": "standard-tier"}, "cloudaicompanionProject": "scripted"})
}

/// The smallest value that fits a schema, with every property: the names of its types are in capital letters.
fn fitting(schema: &Value) -> Value {
    if let Some(first) = list(&schema["enum"]).first() {
        return first.clone();
    }
    match schema["type"].as_str().unwrap_or_default().to_ascii_lowercase().as_str() {
        "object" => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            Value::Object(properties.map(|(name, schema)| (name.clone(), fitting(schema))).collect::<Map<_, _>>())
        }
        "array" => json!([]),
        "boolean" => json!(false),
        "integer" => json!(1),
        // The agent asks now and then how sure the model is that it goes round in circles.
        "number" => json!(0),
        _ => json!("ok"),
    }
}
