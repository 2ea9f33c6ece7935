-- embedding_model
-- The id of a model by name and dimension.
select model_id from rag.embedding_model where name = {name} and dimension = {dimension};
