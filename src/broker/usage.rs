//! How many tokens an answer says that it took, read while it passes: no answer is kept, and none is held up.
#![forbid(unsafe_code)]

use std::sync::Arc;

use actson::feeder::PushJsonFeeder;
use actson::options::JsonParserOptionsBuilder;
use actson::{JsonEvent, JsonParser};
use http::{HeaderMap, header};
use memchr::memchr2;

use super::tally::{Tally, Tokens};

/// The longest text in an answer that is looked over; the parser keeps each to its end. No count stands behind a longer.
const TEXT: usize = 1 << 20;

/// How deep an answer may be nested.
const DEPTH: usize = 128;

/// What begins a line of an event stream that has data.
const DATA: &[u8] = b"data:";

/// Reads an answer. What it has found counts when it is dropped, with the answer whole or not.
pub struct Reader {
    tally: Arc<Tally>,
    form: Form,
    found: Found,
}

/// How an answer comes.
enum Form {
    Json(Document),
    Events(Line),
}

/// Where a line of an event stream is.
enum Line {
    /// In its first letters.
    Start(usize),
    Data(Document),
    Other,
}

impl Reader {
    /// One for an answer with these headers, where it can have counts.
    pub fn new(headers: &HeaderMap, tally: &Arc<Tally>) -> Option<Reader> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let form = match kind.split(';').next().unwrap_or_default().trim() {
            "application/json" => Form::Json(Document::new()),
            "text/event-stream" => Form::Events(Line::Start(0)),
            _ => return None,
        };
        Some(Reader { tally: tally.clone(), form, found: Found::default() })
    }

    /// One for the messages of a WebSocket, each of them a JSON text and perhaps an answer.
    pub fn messages(tally: &Arc<Tally>) -> Reader {
        Reader { tally: tally.clone(), form: Form::Json(Document::new()), found: Found::default() }
    }

    /// A message ends.
    pub fn end(&mut self) {
        self.count();
        self.form = Form::Json(Document::new());
    }

    fn count(&mut self) {
        if let Some(tokens) = std::mem::take(&mut self.found).tokens() {
            self.tally.counted(tokens);
        }
    }

    /// A part of the answer.
    pub fn read(&mut self, mut part: &[u8]) {
        let line = match &mut self.form {
            Form::Json(document) => return document.read(part, &mut self.found),
            Form::Events(line) => line,
        };
        while !part.is_empty() {
            let end = memchr2(b'\n', b'\r', part);
            let (text, rest) = end.map_or((part, &part[part.len()..]), |end| (&part[..end], &part[end + 1..]));
            line.read(text, &mut self.found);
            if end.is_some() {
                *line = Line::Start(0);
            }
            part = rest;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.count();
    }
}

impl Line {
    fn read(&mut self, mut text: &[u8], found: &mut Found) {
        if let Line::Start(known) = self {
            let length = text.len().min(DATA.len() - *known);
            let fits = text[..length] == DATA[*known..*known + length];
            *known += length;
            text = &text[length..];
            match (fits, *known == DATA.len()) {
                (false, _) => *self = Line::Other,
                (true, true) => *self = Line::Data(Document::new()),
                (true, false) => {}
            }
        }
        if let Line::Data(document) = self {
            document.read(text, found);
        }
    }
}

/// The highest count of each kind: streams repeat them as they grow.
#[derive(Default)]
struct Found {
    any: bool,
    input: u64,
    output: u64,
    thoughts: u64,
    cache_written: u64,
    cache_read: u64,
}

impl Found {
    fn tokens(&self) -> Option<Tokens> {
        let Found { any, input, output, thoughts, cache_written, cache_read } = *self;
        any.then_some(Tokens { answers: 1, input, output: output.saturating_add(thoughts), cache_written, cache_read })
    }

    /// A number, and the names of the fields that lead to it.
    fn note(&mut self, path: &[&str], number: u64) {
        // Anthropic: at the top, or in the message of a stream's first event. OpenAI: at the top or in `response`.
        let usage = match path {
            ["usage", rest @ ..] | ["message" | "response", "usage", rest @ ..] => rest,
            ["usageMetadata", rest @ ..] => rest,
            _ => return,
        };
        let place = match usage {
            ["input_tokens" | "prompt_tokens" | "promptTokenCount"] => &mut self.input,
            ["output_tokens" | "completion_tokens" | "candidatesTokenCount"] => &mut self.output,
            ["thoughtsTokenCount"] => &mut self.thoughts,
            ["cache_creation_input_tokens"] => &mut self.cache_written,
            ["cache_read_input_tokens" | "cachedContentTokenCount"]
            | ["input_tokens_details" | "prompt_tokens_details", "cached_tokens"] => &mut self.cache_read,
            _ => return,
        };
        *place = number.max(*place);
        self.any = true;
    }
}

/// One JSON text.
struct Document {
    /// Nothing once it is none, or nothing is to be found in it any more.
    parser: Option<JsonParser<PushJsonFeeder>>,
    /// The objects and lists that are open; of an object the field.
    open: Vec<Option<String>>,
    /// Bytes since the parser last had something to say.
    quiet: usize,
}

impl Document {
    fn new() -> Document {
        let options = JsonParserOptionsBuilder::default().with_max_depth(DEPTH).build();
        let parser = JsonParser::new_with_options(PushJsonFeeder::new(), options);
        Document { parser: Some(parser), open: Vec::new(), quiet: 0 }
    }

    fn read(&mut self, mut text: &[u8], found: &mut Found) {
        while let Some(parser) = self.parser.as_mut().filter(|_| !text.is_empty()) {
            let taken = parser.feeder.push_bytes(text);
            text = &text[taken..];
            self.quiet += taken;
            if self.quiet > TEXT || !self.events(found) {
                self.parser = None;
            }
        }
    }

    /// Whether more may come.
    fn events(&mut self, found: &mut Found) -> bool {
        let Some(parser) = &mut self.parser else { return false };
        loop {
            match parser.next_event() {
                Ok(Some(JsonEvent::NeedMoreInput)) => return true,
                Ok(None) | Err(_) => return false,
                Ok(Some(JsonEvent::StartObject)) => self.open.push(Some(String::new())),
                Ok(Some(JsonEvent::StartArray)) => self.open.push(None),
                Ok(Some(JsonEvent::EndObject | JsonEvent::EndArray)) => drop(self.open.pop()),
                Ok(Some(JsonEvent::FieldName)) => {
                    if let (Some(Some(field)), Ok(name)) = (self.open.last_mut(), parser.current_str()) {
                        name.clone_into(field);
                    }
                }
                Ok(Some(JsonEvent::ValueInt)) => {
                    // Gemini's answers may be a list of parts.
                    let list = self.open.first().is_some_and(Option::is_none);
                    let path: Option<Vec<&str>> = self.open[usize::from(list)..].iter().map(Option::as_deref).collect();
                    if let (Some(path), Ok(number)) = (path, parser.current_int::<u64>()) {
                        found.note(&path, number);
                    }
                }
                Ok(Some(_)) => {}
            }
            self.quiet = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(kind: &'static str, text: &str, size: usize) -> Tokens {
        let tally = Arc::new(Tally::default());
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        if let Some(mut reader) = Reader::new(&headers, &tally) {
            text.as_bytes().chunks(size).for_each(|part| reader.read(part));
        }
        tally.traffic().tokens
    }

    fn counted(input: u64, output: u64, cache_written: u64, cache_read: u64) -> Tokens {
        Tokens { answers: 1, input, output, cache_written, cache_read }
    }

    /// `"usage"` in a text or a tool's input is the model's word, and counts nothing.
    const MESSAGE: &str = r#"{"type":"message","content":[{"type":"text","text":"\"usage\":{\"input_tokens\":9999}"},
        {"type":"tool_use","input":{"usage":{"input_tokens":9999}}}],
        "usage":{"input_tokens":12,"cache_creation_input_tokens":3,"cache_read_input_tokens":4,"output_tokens":7}}"#;

    const ANTHROPIC: &str = "event: message_start\r\n\
        data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\r\n\r\n\
        event: content_block_delta\r\n\
        data: {\"delta\":{\"text\":\"data: {\\\"usage\\\":{\\\"output_tokens\\\":9999}}\"}}\r\n\r\n: ping\r\n\r\n\
        data:{\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\r\n\r\n";

    const OPENAI: &str = "data: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
        data: {\"type\":\"response.completed\",\"response\":{\"output\":[],\"usage\":{\"input_tokens\":80,\
        \"input_tokens_details\":{\"cached_tokens\":64},\"output_tokens\":20,\"total_tokens\":100}}}\n\ndata: [DONE]\n\n";

    const GEMINI: &str = r#"[{"candidates":[],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":2}},
        {"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":5,"thoughtsTokenCount":30,"cachedContentTokenCount":6}}]"#;

    #[test]
    fn counts_are_found_wherever_an_answer_is_cut() {
        for size in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(read("application/json", MESSAGE, size), counted(12, 7, 3, 4), "{size}");
            assert_eq!(read("text/event-stream; charset=utf-8", ANTHROPIC, size), counted(25, 15, 0, 0), "{size}");
            assert_eq!(read("text/event-stream", OPENAI, size), counted(80, 20, 0, 64), "{size}");
            assert_eq!(read("application/json; charset=UTF-8", GEMINI, size), counted(8, 35, 0, 6), "{size}");
        }
    }

    #[test]
    fn what_is_no_answer_with_counts_counts_nothing() {
        let long = format!("{{\"text\":\"{}\",\"usage\":{{\"input_tokens\":1}}}}", "a".repeat(2 * TEXT));
        let deep = format!("{}\"usage\":1", "{\"a\":".repeat(10_000));
        for (kind, text) in [
            ("text/plain", MESSAGE),
            ("application/json", "no JSON at all"),
            ("application/json", "{\"usage\":{\"input_tokens\":-1}}"),
            ("application/json", "{\"usage\":{\"input_tokens\":99999999999999999999999}}"),
            ("application/json", "[[{\"usage\":{\"input_tokens\":1}}]]"),
            ("application/json", &long),
            ("application/json", &deep),
            ("text/event-stream", "dat: {\"usage\":{\"input_tokens\":1}}\n"),
            ("text/event-stream", "xdata: {\"usage\":{\"input_tokens\":1}}\n"),
        ] {
            assert_eq!(read(kind, text, 4096), Tokens::default(), "{kind}: {}", &text[..text.len().min(80)]);
        }
    }
}
