package mongo

import (
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// schemaOf returns the $jsonSchema of the documents that a Go type writes. A field is required unless it may be left out
// (omitempty); a schema tag bounds it: "least=1" or "one of=a b". Fields unknown to this program are let through, since the next
// one may write them before it has brought the validators up.
func schemaOf(document any) bson.D {
	t := reflect.TypeOf(document)
	var required bson.A
	var properties bson.D
	for i := range t.NumField() {
		field := t.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("bson"), ",")
		if !strings.Contains(options, "omitempty") {
			required = append(required, name)
		}
		properties = append(properties, bson.E{Key: name, Value: property(field.Type, field.Tag.Get("schema"))})
	}
	return bson.D{{Key: "bsonType", Value: "object"}, {Key: "required", Value: required}, {Key: "properties", Value: properties}}
}

// whole is how a Go int may be written, by its size.
var whole = bson.A{"int", "long"}

// property is the schema of one field.
func property(t reflect.Type, bound string) bson.D {
	out := bson.D{{Key: "bsonType", Value: bsonType(t)}}
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String {
		out = append(out, bson.E{Key: "items", Value: property(t.Elem(), "")})
	}
	switch kind, value, _ := strings.Cut(bound, "="); kind {
	case "least":
		n, _ := strconv.Atoi(value)
		out = append(out, bson.E{Key: "minimum", Value: n})
	case "one of":
		out = append(out, bson.E{Key: "enum", Value: strings.Fields(value)})
	}
	return out
}

func bsonType(t reflect.Type) any {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "date"
	case t == reflect.TypeFor[bson.ObjectID]():
		return "objectId"
	case t == reflect.TypeFor[[]byte]():
		return "binData"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int64:
		return whole
	case reflect.Slice:
		return "array"
	}
	panic("mongo: no BSON type is known for " + t.String())
}
