-- Titles by their beginning, whatever the letter case, for completion. Row-level security lets an index be used for leakproof
-- conditions only: comparisons are, lower() and LIKE are not. So the folded title is a column, and a prefix is a range of it.
-- It is cut to what an index row holds at four bytes a character.
-- NOTE: a trigger and no generated column: to add one, every document's text is written anew while nobody can read (3 s for
-- 200 MB of texts; this fills 10 ms).
alter table rag.document add column title_key text collate "C";
-- the owner sees the rows while row-level security is not forced
alter table rag.document no force row level security;
update rag.document set title_key = left(lower(title), 200);
alter table rag.document
    force row level security,
    alter column title_key set not null;

create function rag.key_title() returns trigger
language plpgsql
set search_path = ''
as $$
begin
    new.title_key := left(lower(new.title), 200);
    return new;
end
$$;
create trigger key_title before insert or update on rag.document for each row execute function rag.key_title();

-- with the audience, so that titles of others are passed over without a look at their rows
create index document_by_title on rag.document (tenant_id, title_key, document_id) include (audience);
