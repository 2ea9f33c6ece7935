-- Titles by their beginning, whatever the letter case, for completion. Row-level security lets an index be used for leakproof
-- conditions only: comparisons are, lower() and LIKE are not. So the folded title is a column, and a prefix is a range of it.
-- It is cut to what an index row holds at four bytes a character. The table is rewritten once.
alter table rag.document
    add column title_key text collate "C" generated always as (left(lower(title), 200)) stored;

-- with the audience, so that titles of others are passed over without a look at their rows
create index document_by_title on rag.document (tenant_id, title_key, document_id) include (audience);
