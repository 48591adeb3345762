//! A Rust file reduced to the tokens that count: without comments, layout, documentation and what is compiled for tests alone.

use std::collections::BTreeSet;

use dcu_artifact::{Digest, digest_bytes};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// What a file is to a stage crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The root, whose function `methods` lists the methods; none of them depends on that list.
    Root,
    /// `methods/mod.rs`, whose `mod NAME;` are the same list once more.
    Methods,
    /// Any other file.
    Plain,
}

/// What is left of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reduced {
    pub(crate) digest: Digest,
    /// Names that it takes from beside itself: after `super::` and `methods::`.
    pub(crate) siblings: BTreeSet<String>,
}

/// Reduces the text of a file. One that is no Rust counts by its bytes.
pub(crate) fn reduce(text: &str, role: Role) -> Reduced {
    match text.parse::<TokenStream>() {
        Ok(stream) => {
            let text = reduced_text(stream, role);
            Reduced { digest: digest_bytes(text.as_bytes()), siblings: siblings(&text) }
        }
        Err(_) => Reduced { digest: digest_bytes(text.as_bytes()), siblings: BTreeSet::new() },
    }
}

fn reduced_text(stream: TokenStream, role: Role) -> String {
    let mut reducer = Reducer { role, text: String::new() };
    reducer.stream(stream, Place { top: true, verbatim: false, types: false });
    reducer.text
}

/// The identifiers after `super::` and `methods::`, also those in braces.
fn siblings(text: &str) -> BTreeSet<String> {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let mut found = BTreeSet::new();
    for prefix in ["super :_: ", "methods :_: "] {
        for (position, _) in text.match_indices(prefix) {
            let rest = &text[position + prefix.len()..];
            let names = if rest.starts_with('{') { rest.split(';').next().unwrap_or(rest) } else { rest.split(' ').next().unwrap_or(rest) };
            found.extend(names.split(|character| !is_word(character)).filter(|name| !name.is_empty() && *name != "_").map(str::to_owned));
        }
    }
    found
}

/// Where tokens stand.
#[derive(Clone, Copy)]
struct Place {
    /// Outside all brackets.
    top: bool,
    /// In the argument of a macro, where every token may count.
    verbatim: bool,
    /// In the fields of a type or the parameters of a function, where `<` opens a bracket.
    types: bool,
}

struct Reducer {
    role: Role,
    text: String,
}

impl Reducer {
    fn stream(&mut self, stream: TokenStream, place: Place) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let (mut at, mut declared, mut is_macro) = (0, Declared::Nothing, false);
        while at < tokens.len() {
            let (end, attributes) = attributes(&tokens, at);
            if end > at {
                at = self.attributes(&tokens, end, &attributes, place);
                continue;
            }
            if let Some(end) = self.is_list(&tokens, at, place) {
                at = end;
                continue;
            }
            match &tokens[at] {
                TokenTree::Group(group) => {
                    let inside = Place { top: false, verbatim: place.verbatim || is_macro, types: declared.types(group, place) };
                    self.group(group, inside);
                    declared = declared.after(group);
                    is_macro = false;
                }
                TokenTree::Punct(punct) => {
                    self.text.push(punct.as_char());
                    self.text.push(if punct.spacing() == Spacing::Joint { '_' } else { ' ' });
                    if punct.as_char() == ';' {
                        declared = Declared::Nothing;
                    }
                    let named = || matches!(at.checked_sub(1).map(|before| &tokens[before]), Some(TokenTree::Ident(_)));
                    is_macro = is_macro || punct.as_char() == '!' && punct.spacing() == Spacing::Alone && named();
                    // `if a != (b)`, `!x`: no macro.
                    let opens = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Group(_)));
                    let defines = matches!(tokens.get(at + 1), Some(TokenTree::Ident(_))) && opens(tokens.get(at + 2));
                    is_macro = is_macro && (opens(tokens.get(at + 1)) || defines);
                }
                other => {
                    self.text.push_str(&other.to_string());
                    self.text.push(' ');
                    declared = Declared::by(&tokens, at).unwrap_or(declared);
                }
            }
            at += 1;
        }
    }

    fn group(&mut self, group: &proc_macro2::Group, place: Place) {
        let (open, close) = match group.delimiter() {
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::Brace => ("{", "}"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::None => ("", ""),
        };
        self.text.push_str(open);
        self.stream(group.stream(), place);
        self.text.push_str(close);
    }

    /// Writes what counts of some attributes; the position after them, and after what they belong to where that is for tests alone.
    fn attributes(&mut self, tokens: &[TokenTree], end: usize, attributes: &[Attribute], place: Place) -> usize {
        let test = attributes.iter().find(|attribute| !place.verbatim && attribute.is_test());
        let kept = attributes.iter().filter(|attribute| !attribute.is_documentation() && (place.verbatim || !attribute.is_for_tests()));
        for attribute in kept.filter(|attribute| test.is_none() || attribute.inner && !attribute.is_test()) {
            self.text.push_str(&attribute.text);
            self.text.push('\n');
        }
        match test {
            Some(Attribute { inner: true, .. }) => tokens.len(),
            Some(_) => end_of_item(tokens, end, place.types),
            None => end,
        }
    }

    /// Where the list of the methods ends, if it begins here.
    fn is_list(&self, tokens: &[TokenTree], at: usize, place: Place) -> Option<usize> {
        let begins = place.top
            && match self.role {
                Role::Root => is_registry(&tokens[at..]),
                Role::Methods => is_module_declaration(&tokens[after_visibility(tokens, at)..]),
                Role::Plain => false,
            };
        begins.then(|| end_of_item(tokens, at, false))
    }
}

/// What the last keyword declares, as far as it says whether a group holds types.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Declared {
    Nothing,
    Type,
    Function,
}

impl Declared {
    fn by(tokens: &[TokenTree], at: usize) -> Option<Self> {
        let TokenTree::Ident(word) = &tokens[at] else { return None };
        let named = matches!(tokens.get(at + 1), Some(TokenTree::Ident(_)));
        match word.to_string().as_str() {
            "struct" | "enum" | "union" if named => Some(Self::Type),
            "fn" => Some(Self::Function),
            _ => None,
        }
    }

    fn types(self, group: &proc_macro2::Group, place: Place) -> bool {
        match (self, group.delimiter()) {
            (Self::Type, Delimiter::Brace | Delimiter::Parenthesis) | (Self::Function, Delimiter::Parenthesis) => true,
            (Self::Function, Delimiter::Brace) => false,
            _ => place.types,
        }
    }

    fn after(self, group: &proc_macro2::Group) -> Self {
        match (self, group.delimiter()) {
            (_, Delimiter::Brace) | (Self::Function, Delimiter::Parenthesis) => Self::Nothing,
            _ => self,
        }
    }
}

struct Attribute {
    text: String,
    /// `#![...]`, which belongs to all around it.
    inner: bool,
}

impl Attribute {
    fn plain(&self) -> String {
        self.text.chars().filter(|character| !character.is_whitespace()).collect()
    }

    /// What it belongs to exists in tests only.
    fn is_test(&self) -> bool {
        let plain = self.plain();
        plain == "test" || plain == "cfg(test)" || plain.starts_with("cfg(all(test,") || plain == "cfg(all(test))"
    }

    /// The attribute itself exists in tests only.
    fn is_for_tests(&self) -> bool {
        self.is_test() || self.plain().starts_with("cfg_attr(test,")
    }

    fn is_documentation(&self) -> bool {
        let plain = self.plain();
        plain.starts_with("doc=") || plain.starts_with("doc(")
    }
}

/// All attributes from `at` on, and where they end.
fn attributes(tokens: &[TokenTree], mut at: usize) -> (usize, Vec<Attribute>) {
    let mut found = Vec::new();
    while let Some(TokenTree::Punct(hash)) = tokens.get(at)
        && hash.as_char() == '#'
    {
        let inner = is_sign(tokens.get(at + 1), '!');
        let position = at + 1 + usize::from(inner);
        match tokens.get(position) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
                found.push(Attribute { text: group.stream().to_string(), inner });
                at = position + 1;
            }
            _ => break,
        }
    }
    (at, found)
}

fn is_sign(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn is_block(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace)
}

fn word(token: Option<&TokenTree>) -> String {
    match token {
        Some(TokenTree::Ident(word)) => word.to_string(),
        _ => String::new(),
    }
}

fn after_visibility(tokens: &[TokenTree], at: usize) -> usize {
    if word(tokens.get(at)) != "pub" {
        return at;
    }
    match tokens.get(at + 1) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => at + 2,
        _ => at + 1,
    }
}

/// The position after what begins at `at` and may carry an attribute: an item, a statement, a field, a variant, an arm, a parameter. In doubt
/// it takes too little, so that too much counts as code.
fn end_of_item(tokens: &[TokenTree], at: usize, types: bool) -> usize {
    let at = after_visibility(tokens, at);
    if is_block(tokens.get(at)) {
        return at + 1;
    }
    let (first, second) = (word(tokens.get(at)), word(tokens.get(at + 1)));
    let to_semicolon = || (at..tokens.len()).find(|&end| is_sign(tokens.get(end), ';')).map_or(tokens.len(), |end| end + 1);
    let ends = |end: &usize| is_sign(tokens.get(*end), ';') || is_block(tokens.get(*end));
    let to_block = || (at..tokens.len()).find(ends).map_or(tokens.len(), |end| end + 1);
    match first.as_str() {
        "const" if ["fn", "unsafe", "async", "extern"].contains(&second.as_str()) || is_block(tokens.get(at + 1)) => to_block(),
        "use" | "const" | "static" | "type" | "let" => to_semicolon(),
        "fn" | "mod" | "struct" | "impl" | "enum" | "trait" | "extern" | "unsafe" | "async" => to_block(),
        "union" | "auto" | "default" if !second.is_empty() => to_block(),
        "macro_rules" => to_block(),
        "if" | "match" | "loop" | "while" | "for" => end_of_blocks(tokens, at),
        _ => end_of_listed(tokens, at, types),
    }
}

/// The position after something that ends with `,` or `;`.
fn end_of_listed(tokens: &[TokenTree], begin: usize, types: bool) -> usize {
    let mut depth = 0_u32;
    let before = |at: usize, sign: char| at > begin && is_sign(tokens.get(at - 1), sign);
    for at in begin..tokens.len() {
        match &tokens[at] {
            TokenTree::Punct(punct) => match punct.as_char() {
                ';' => return at + 1,
                ',' if depth == 0 => return at + 1,
                '>' if before(at, '=') => return end_of_arm(tokens, at + 1),
                '>' if before(at, '-') => {}
                '>' if depth == 0 => return at,
                '>' => depth -= 1,
                '<' if types || depth > 0 || before(at, ':') => depth += 1,
                _ => {}
            },
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace && before(at, '!') => return after_separator(tokens, at + 1),
            _ => {}
        }
    }
    tokens.len()
}

/// The position after the body of a match's arm.
fn end_of_arm(tokens: &[TokenTree], at: usize) -> usize {
    match word(tokens.get(at)).as_str() {
        _ if is_block(tokens.get(at)) => end_of_blocks(tokens, at),
        "if" | "match" | "loop" | "while" | "for" | "unsafe" => end_of_blocks(tokens, at),
        _ => end_of_listed(tokens, at, false),
    }
}

/// The position after an expression that ends with a block: `if a { } else { }`.
fn end_of_blocks(tokens: &[TokenTree], at: usize) -> usize {
    let Some(block) = (at..tokens.len()).find(|&block| is_block(tokens.get(block))) else { return tokens.len() };
    let next = block + 1;
    let goes_on = is_sign(tokens.get(next), '?') || is_sign(tokens.get(next), '.') && !is_sign(tokens.get(next + 1), '.');
    match word(tokens.get(next)).as_str() {
        "else" => end_of_blocks(tokens, next),
        _ if is_sign(tokens.get(next), '=') => end_of_blocks(tokens, next),
        _ if goes_on => end_of_listed(tokens, next, false),
        _ => after_separator(tokens, next),
    }
}

fn after_separator(tokens: &[TokenTree], at: usize) -> usize {
    at + usize::from(is_sign(tokens.get(at), ',') || is_sign(tokens.get(at), ';'))
}

/// `mod name;`
fn is_module_declaration(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(keyword), TokenTree::Ident(_), TokenTree::Punct(end), ..] if keyword == "mod" && end.as_char() == ';')
}

/// `fn methods() ...`
fn is_registry(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(keyword), TokenTree::Ident(name), ..] if keyword == "fn" && name == "methods")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(text: &str) -> String {
        reduced_text(text.parse().unwrap(), Role::Root)
    }

    const CODE: &str = "//! Doc.\nmod a;\nuse x::{b, c};\n/// Doc.\n#[must_use]\npub fn f(x: u8) -> u8 { x + 1 }\npub fn methods() -> Vec<u8> { vec![1] }\n";

    #[test]
    fn comments_layout_documentation_tests_and_the_registry_do_not_count() {
        let other = "mod a;\n#[cfg(test)]\nmod fixtures;\nuse x::{b, c};\n#[must_use] pub fn f(x: u8) -> u8 {\n // add\n x + 1 }
            /// All.\npub fn methods() -> Vec<u8> { vec![1, 2] }\n#[allow(unused)] #[cfg(test)]\nmod tests { fn g() {} }\n";
        assert_eq!(reduced(CODE), reduced(other));
    }

    #[test]
    fn code_counts() {
        let original = reduced(CODE);
        for (old, new) in [("x + 1", "x + 2"), ("u8) ->", "u16) ->"), ("b, c", "b, d"), ("must_use", "inline"), ("fn f", "fn g")] {
            assert_ne!(reduced(&CODE.replace(old, new)), original, "{old} -> {new}");
        }
    }

    #[test]
    fn the_list_of_methods_counts_in_its_own_place_only() {
        let list = |text: &str| reduced_text(text.parse().unwrap(), Role::Methods);
        assert_eq!(list("pub(crate) mod a; mod b; fn f() {}"), list("mod a; /// B.\npub mod b; mod c; fn f() {}"));
        assert_ne!(list("mod a; fn f() {}"), list("mod a; fn g() {}"));
        let plain = |text: &str| reduced_text(text.parse().unwrap(), Role::Plain);
        assert_ne!(plain("mod a;"), plain("mod a; mod b;"));
        assert_ne!(plain("fn methods() { 1 }"), plain("fn methods() { 2 }"));
    }

    #[test]
    fn what_only_tests_have_is_left_out_to_its_end_and_no_further() {
        let same = |with: &str, without: &str| assert_eq!(reduced(with), reduced(without), "{with}");
        same("struct A { #[cfg(test)] a: u8, b: u8 }", "struct A { b: u8 }");
        same("struct A { b: u8, #[cfg(test)] pub(crate) a: Map<u8, Vec<u8>>, c: u8 }", "struct A { b: u8, c: u8 }");
        same("struct A { b: u8, #[cfg(test)] a: fn(u8) -> Map<u8, u8> } struct B;", "struct A { b: u8, } struct B;");
        same("enum A { #[cfg(test)] B { x: u8 }, #[cfg(test)] C(Map<u8, u8>), D(#[cfg(test)] Map<u8, u8>, u8) }", "enum A { D(u8) }");
        same("fn f(#[cfg(test)] a: Map<u8, u8>, b: u8) {}", "fn f(b: u8) {}");
        same("fn f() { match x { #[cfg(test)] A => { 1 } B => 2, } }", "fn f() { match x { B => 2, } }");
        same("fn f() { match x { #[cfg(test)] A { c } if d => g(1, 2), B => 2, } }", "fn f() { match x { B => 2, } }");
        same("fn f() { match x { #[cfg(test)] A => if a { 1 } else { 2 } B => 2, } }", "fn f() { match x { B => 2, } }");
        same("fn f() { match x { #[cfg(test)] A => match y { _ => 1 } B => 2, } }", "fn f() { match x { B => 2, } }");
        same("fn f() { match x { #[cfg(test)] A => { y }.z(1, 2), B => 2, } }", "fn f() { match x { B => 2, } }");
        same("fn f() { S { #[cfg(test)] a: g::<u8, u8>(1), b: 2 } }", "fn f() { S { b: 2 } }");
        same("fn f() { #[cfg(test)] let x = if a { 1 } else { 2 }; x }", "fn f() { x }");
        same("fn f() { #[cfg(test)] a.b(1, 2); x }", "fn f() { x }");
        same("fn f() { #[cfg(test)] { a } #[cfg(test)] log! { a } x }", "fn f() { x }");
        same("#[cfg(test)] use a::{b, c}; #[cfg(test)] const A: B = B { c: 1 }; fn f() {}", "fn f() {}");
        same("#[cfg(test)] pub const fn g() -> u8 { 1 } #[cfg(test)] #[derive(Debug)] struct A(u8); fn f() {}", "fn f() {}");
        same("#[cfg(all(test, unix))] mod a { } #[cfg_attr(test, derive(Debug))] struct A;", "struct A;");
        same("mod a { #![cfg(test)] fn g() {} } fn f() {}", "mod a { } fn f() {}");
        same("#![allow(x)] #[cfg(test)] mod a; fn f() {}", "#![allow(x)] fn f() {}");
    }

    #[test]
    fn what_is_compiled_without_tests_too_counts() {
        for condition in ["cfg(any(test, unix))", "cfg(not(test))", "cfg(unix)", "cfg(all(unix, not(test)))"] {
            let with = |value: u8| reduced(&format!("#[{condition}] fn g() -> u8 {{ {value} }}"));
            assert_ne!(with(1), with(2), "{condition}");
        }
        let field = |value: &str| reduced(&format!("fn f() {{ S {{ #[cfg(test)] a: x < y, b: {value} > z, c: 1 }} }}"));
        assert_ne!(field("1"), field("2"));
    }

    #[test]
    fn all_of_a_macros_argument_counts_but_comments_and_documentation() {
        assert_ne!(reduced("m!(#[cfg(test)] mod a; b)"), reduced("m!(b)"));
        assert_ne!(reduced("m! { 1 }"), reduced("m! { 2 }"));
        assert_ne!(
            reduced("macro_rules! m { () => { #[test] fn a() { 1 } } }"),
            reduced("macro_rules! m { () => { #[test] fn a() { 2 } } }")
        );
        assert_eq!(reduced("m!(a, /* why */ b)"), reduced("m!(a, b)"));
        assert_eq!(reduced("m! { /// Doc.\n struct A; }"), reduced("m! { struct A; }"));
        assert_eq!(reduced("fn f() { if a != (b) { #[cfg(test)] c(); } }"), reduced("fn f() { if a != (b) { } }"));
    }

    #[test]
    fn operators_of_two_signs_are_not_two_operators() {
        assert_ne!(reduced("a && b"), reduced("a & & b"));
    }

    #[test]
    fn names_taken_from_beside_a_file_are_found() {
        let found = reduce("use super::{fit::Fit, offline}; fn f() { crate::methods::import::g(); super::h() }", Role::Plain).siblings;
        let names = ["Fit", "fit", "h", "import", "offline"];
        assert!(found.iter().map(String::as_str).eq(names), "{found:?}");
    }
}
