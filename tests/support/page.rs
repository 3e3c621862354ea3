//! What stands in a page of the documentation.

/// The page's only block of code in a language that contains a word.
pub fn block<'a>(page: &'a str, language: &str, word: &str) -> &'a str {
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1).map(|rest| {
        let end = rest.find("```").expect("the end of the block");
        &rest[..end]
    });
    let mut found = blocks.filter(|block| block.contains(word));
    let block = found.next().expect("a block with this word");
    assert!(found.next().is_none(), "{word} is in two of them");
    block
}
